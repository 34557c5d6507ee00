"""Arranges the embeddings and labels of a task for the models of its folds.

Shapes: N clips (or frames) of a split, D width, C labels, L frames of a file.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank.hear import predictor
from audiorank.hear import scores
from audiorank.hear import tasks


class Split(NamedTuple):
  """Embeddings and labels of a split, or of several splits joined."""
  z_ND: np.ndarray
  y_NC: np.ndarray
  frames: list  # Event tasks: (file, ms_L) in the order of the rows.
  truth: dict  # Event tasks: {file: its events}.


class Fold(NamedTuple):
  """The data of one model: (Split, padded rows) for train, valid and test."""
  name: str  # Of the test split.
  train: tuple
  valid: tuple
  test: tuple


def load(task: tasks.Task, embeddings: Mapping[str, Any]) -> list[Fold]:
  """Returns the `Fold` of every model, padded to the same sizes.

  Args:
    task: from `tasks.load`.
    embeddings: see `probe.evaluate`.

  Raises:
    ValueError: embeddings that do not fit the task, an unknown measure.
  """
  known: Iterable[str] = scores.SCENE
  if task.embedding_type == 'event':
    known = scores.EVENT
  for name in task.evaluation:
    if name not in known:
      raise ValueError(f'{task.name}: score {name!r} is unknown for '
                       f'{task.embedding_type} tasks, expected {list(known)}')
  splits = {split: _split(task, split, embeddings) for split in task.splits}
  widths = {split: s.z_ND.shape[1] for split, s in splits.items()}
  if len(set(widths.values())) > 1:
    raise ValueError(f'{task.name}: embeddings differ in width: {widths}')
  parts: list[tuple[str, Split, Split, Split]] = []
  for train, valid, test in tasks.folds(task):
    joined = _join([splits[name] for name in train])
    # Batch normalisation needs a variance.
    if len(joined.z_ND) < 2:
      raise ValueError(f'{task.name}: {len(joined.z_ND)} training rows for '
                       f'{test}, expected at least 2')
    parts.append((test, joined, splits[valid], splits[test]))
  # The same sizes, so that one compiled program serves every fold.
  capacities = [max(len(three[i].z_ND) for _, *three in parts)
                for i in range(3)]
  return [Fold(name, *((s, predictor.rows(s.z_ND, s.y_NC, capacity))
                       for s, capacity in zip(three, capacities)))
          for name, *three in parts]


def _split(task: tasks.Task, split: str,
           embeddings: Mapping[str, Any]) -> Split:
  """Returns the Split of a task's split.

  Raises:
    ValueError: the embeddings do not fit the task or are not finite.
  """
  if task.embedding_type == 'scene':
    loaded = _scene(task, split, embeddings)
  else:
    loaded = _events(task, split, embeddings)
  bad = int((~np.isfinite(loaded.z_ND)).sum())
  if bad:
    raise ValueError(f'{task.name}: embeddings of {split} have {bad} values '
                     'that are not finite')
  return loaded


def _scene(task: tasks.Task, split: str,
           embeddings: Mapping[str, Any]) -> Split:
  """Returns the Split of a scene task: one row per clip."""
  if split not in embeddings:
    raise ValueError(f'{task.name}: no embeddings for split {split!r}, found '
                     f'{sorted(embeddings)}')
  z_ND, y_NC = np.asarray(embeddings[split]), task.targets[split]
  if z_ND.ndim != 2 or len(z_ND) != len(y_NC):
    raise ValueError(f'{task.name}: embeddings of {split} have shape '
                     f'{z_ND.shape}, expected ({len(y_NC)}, width)')
  return Split(z_ND.astype(np.float32), y_NC, [], {})


def _events(task: tasks.Task, split: str,
            embeddings: Mapping[str, Any]) -> Split:
  """Returns the Split of an event task: one row per frame."""
  files = task.files[split]
  missing = [file for file in files if file not in embeddings]
  if missing:
    raise ValueError(f'{task.name}: no embeddings for {missing[0]} of '
                     f'{split}, {len(missing)} missing in all')
  parts, frames = [], []
  for file in files:
    z_LD = np.asarray(embeddings[file][0])
    # float64: after five minutes float32 has steps of .03 ms.
    ms_L = np.asarray(embeddings[file][1], np.float64)
    if z_LD.ndim != 2 or len(z_LD) != len(ms_L) or not len(ms_L):
      raise ValueError(f'{task.name}: {file} has embeddings {z_LD.shape} for '
                       f'{len(ms_L)} timestamps')
    # The decoder of events takes frames as they follow in time.
    if np.any(np.diff(ms_L) <= 0):
      raise ValueError(f'{task.name}: timestamps of {file} do not increase')
    parts.append(z_LD)
    frames.append((file, ms_L))
  truth = dict(zip(files, task.targets[split]))
  # A frame has the labels that are active at its time.
  y_NC = np.concatenate([tasks.frame_targets(truth[file], task.labels, ms_L)
                         for file, ms_L in frames])
  return Split(np.concatenate(parts).astype(np.float32), y_NC, frames, truth)


def _join(splits: Sequence[Split]) -> Split:
  """Returns one Split with the rows of several."""
  return Split(np.concatenate([s.z_ND for s in splits]),
               np.concatenate([s.y_NC for s in splits]),
               [frame for s in splits for frame in s.frames],
               {file: e for s in splits for file, e in s.truth.items()})
