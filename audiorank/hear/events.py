"""Turns the probabilities of frames into events, as hear-eval-kit does.

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
# Settings to try if the task has no event_postprocessing_grid.
GRID = {'median_filter_ms': [250], 'min_duration': [125, 250]}


def decode(p_LC: np.ndarray, ms_L: np.ndarray, labels: Sequence[str],
           median_filter_ms: float, min_duration: float) -> list[dict]:
  """Returns the events of one file.

  Probabilities are median filtered over time. A run of frames strictly above
  one half is an event, from the time of its first to that of its last frame.

  Args:
    p_LC: probabilities.
    ms_L: times of the frames, in ms.
    labels: names of the columns.
    median_filter_ms: length of the filter, rounded to whole frames; 0 for none.
    min_duration: shorter events are dropped, ms.

  Returns:
    dictionaries of label, start and end (ms), sorted by start.
  """
  ms_L = np.asarray(ms_L, np.float64)
  p_LC = np.asarray(p_LC, np.float32)
  if median_filter_ms and len(ms_L) > 1:
    frames = int(round(median_filter_ms / np.mean(np.diff(ms_L))))
    if frames:
      # Over time alone: a column is filtered by itself.
      p_LC = ndimage.median_filter(p_LC, size=(frames, 1))
  out = []
  silent_1C = np.zeros((1, p_LC.shape[1]), np.int8)
  # Silence before and after, so that every event has two edges.
  on_LC = np.concatenate([silent_1C, p_LC > THRESHOLD, silent_1C])
  # +1 where an event begins, -1 after it ends.
  for c, edge_L in enumerate(np.diff(on_LC.astype(np.int8), axis=0).T):
    starts, ends = np.flatnonzero(edge_L > 0), np.flatnonzero(edge_L < 0) - 1
    for start, end in zip(ms_L[starts].tolist(), ms_L[ends].tolist()):
      if end - start >= min_duration:
        out.append({'label': labels[c], 'start': start, 'end': end})
  out.sort(key=lambda event: event['start'])
  return out


def settings(task: tasks.Task) -> list[dict[str, float]]:
  """Returns every combination of the task's post-processing grid.

  Raises:
    ValueError: the grid has other fields than `decode`.
  """
  grid = task.metadata.get('evaluation_params', {}).get(
      'event_postprocessing_grid', GRID)
  names = sorted(grid)
  unknown = sorted(set(names) ^ set(GRID))
  if unknown:
    raise ValueError(f'{task.name}: event_postprocessing_grid wants the fields '
                     f'{sorted(GRID)}, found {names}')
  # Names sorted: the same order on every machine.
  return [dict(zip(names, values))
          for values in itertools.product(*(grid[name] for name in names))]


def choose(candidates: Iterable[dict], score: Callable[[dict], float]
           ) -> tuple[dict, float]:
  """Returns the settings with the largest `score(settings)`, and that score.

  Args:
    candidates: of `settings`.
    score: larger is better.
  """
  ranked = [(score(candidate), candidate) for candidate in candidates]
  # As in the kit: an undefined score counts as 0, and of equal ones the one
  # with the larger settings wins.
  def rank(pair: tuple[float, dict]) -> tuple[float, list]:
    value, candidate = pair
    if np.isnan(value):
      value = 0.
    return value, sorted(candidate.items())

  value, best = max(ranked, key=rank)
  return best, value


def decode_files(p_NC: np.ndarray, frames: Sequence[tuple[str, np.ndarray]],
                 labels: Sequence[str],
                 settings: dict) -> dict[str, list[dict[str, Any]]]:
  """Returns {file: its events}.

  Args:
    p_NC: probabilities of the frames of all files, one file after the other.
    frames: (file, ms_L) in the same order.
    labels: names of the columns.
    settings: arguments of `decode`.
  """
  out, row = {}, 0
  for file, ms_L in frames:
    out[file] = decode(p_NC[row:row + len(ms_L)], ms_L, labels, **settings)
    row += len(ms_L)
  return out


def primary(name: str, predicted: scores.Events, reference: scores.Events,
            labels: Sequence[str]) -> float:
  """Returns an event measure as one number: of an F measure, F itself."""
  return scores.event([name], predicted, reference, labels)[name]
