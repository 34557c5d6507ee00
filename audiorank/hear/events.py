"""Frame probabilities -> events, as hear-eval-kit makes them.

Shapes: L frames of one file, C labels.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np
from scipy import ndimage

from audiorank.hear import scores
from audiorank.hear import tasks

THRESHOLD = 0.5
# What is tried where the task names no event_postprocessing_grid.
GRID = {'median_filter_ms': [250], 'min_duration': [125, 250]}


def decode(p_LC: np.ndarray, ms_L: np.ndarray, labels: Sequence[str],
           median_filter_ms: float, min_duration: float) -> list[dict]:
  """Returns one file's events: label, start and end (ms), by start.

  Probabilities are median filtered over time with a window of
  round(median_filter_ms / hop) frames (edges mirrored), then compared with
  one half, strictly. A run of frames above it is an event from the time of
  its first to the time of its last frame, kept if that spans at least
  `min_duration` ms.
  """
  ms_L = np.asarray(ms_L, np.float64)
  p_LC = np.asarray(p_LC, np.float32)
  if median_filter_ms and len(ms_L) > 1:
    frames = int(round(median_filter_ms / np.mean(np.diff(ms_L))))
    if frames:
      p_LC = ndimage.median_filter(p_LC, size=(frames, 1))
  out = []
  silent_1C = np.zeros((1, p_LC.shape[1]), np.int8)
  # Silence before and after: every event has both its edges.
  on_LC = np.concatenate([silent_1C, p_LC > THRESHOLD, silent_1C])
  for c, edge_L in enumerate(np.diff(on_LC.astype(np.int8), axis=0).T):
    starts, ends = np.flatnonzero(edge_L > 0), np.flatnonzero(edge_L < 0) - 1
    for start, end in zip(ms_L[starts].tolist(), ms_L[ends].tolist()):
      if end - start >= min_duration:
        out.append({'label': labels[c], 'start': start, 'end': end})
  out.sort(key=lambda event: event['start'])
  return out


def settings(task: tasks.Task) -> list[dict[str, float]]:
  """Returns every combination of the task's post-processing grid."""
  grid = task.metadata.get('evaluation_params', {}).get(
      'event_postprocessing_grid', GRID)
  names = sorted(grid)
  unknown = sorted(set(names) ^ set(GRID))
  if unknown:
    raise ValueError(f'{task.name}: event_postprocessing_grid wants the fields '
                     f'{sorted(GRID)}, found {names}')
  return [dict(zip(names, values))
          for values in itertools.product(*(grid[name] for name in names))]


def choose(candidates: Iterable[dict], score: Callable[[dict], float]
           ) -> tuple[dict, float]:
  """Returns the settings with the largest `score(settings)`, and that score.

  As in the kit an undefined score counts as 0 here, and of equals the one
  with the larger values wins.
  """
  ranked = [(score(candidate), candidate) for candidate in candidates]
  key = lambda pair: (0.0 if np.isnan(pair[0]) else pair[0],
                      sorted(pair[1].items()))
  value, best = max(ranked, key=key)
  return best, value


def decode_files(p_NC: np.ndarray, frames: Sequence[tuple[str, np.ndarray]],
                 labels: Sequence[str],
                 settings: dict) -> dict[str, list[dict[str, Any]]]:
  """Returns file -> events; frames are (file, ms_L) in the rows' order."""
  out, row = {}, 0
  for file, ms_L in frames:
    out[file] = decode(p_NC[row:row + len(ms_L)], ms_L, labels, **settings)
    row += len(ms_L)
  return out


def primary(name: str, predicted: scores.Events, reference: scores.Events,
            labels: Sequence[str]) -> float:
  """Returns the one number by which an event score ranks."""
  return scores.event([name], predicted, reference, labels)[name]
