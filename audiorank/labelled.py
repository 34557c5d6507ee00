"""Scores of embeddings in a file by labels, without any audio.

The clips are divided into five folds: each is tested once, like a HEAR task
with folds. Clips of one group (recording, speaker) are in one fold.

Shapes: N clips, D width, C labels.
"""

import os
import pathlib
import time
from typing import Any

import numpy as np
import pandas as pd

from audiorank import files
from audiorank.hear import probe
from audiorank.hear import tasks
from audiorank.rankme import files as embeddings

FOLDS = 5
SEED = 0  # Of the folds.
TABLES = ('.csv', '.tsv', '.txt', '.npy', '.parquet')


def score(path: str | os.PathLike[str], labels: str, array: str = '',
          groups: str = '', settings: dict[str, Any] | None = None
          ) -> dict[str, Any]:
  """Scores embeddings in a file; returns a record as evaluate.score.

  Args:
    path: see rankme.files.open_table.
    labels: name of an array (or column) of the file, or a file with one label
      a row: .npy, .txt, or .csv, .tsv and .parquet with a column 'label'.
    array: name of the embeddings in the file; see open_table.
    groups: name of the file's array of groups.
    settings: arguments of hear.probe.evaluate.

  Raises:
    FileNotFoundError, ValueError: no such file or array; labels that do not
      fit the embeddings; fewer than two labels; an embedding with NaN.
  """
  began, settings = time.monotonic(), settings or {}
  with files.local(path) as copy:
    opened = embeddings.open_table(copy, array)
    z_ND = np.concatenate([np.asarray(z, np.float32) for z in opened.chunks()])
    label_N = read_labels(opened, labels)
    group_N = None
    if groups:
      group_N = np.asarray(opened.column(groups))
  task, z = folded(pathlib.Path(os.fspath(path)), z_ND, label_N, group_N)
  result = probe.evaluate(task, z, **settings)
  return {'task': task.name,
          # The labels take the place of a task's checksum.
          'task_sha256': files.digest([str(x) for x in label_N]),
          'embedding_type': 'scene', 'metric': task.evaluation[0],
          'clip_rate': None, 'settings': dict(settings),
          'version': probe.VERSION, 'result': result, 'cached': False,
          'seconds': time.monotonic() - began}


def read_labels(table: embeddings.Table, labels: str) -> np.ndarray:
  """Returns label_N; see `score`."""
  path = files.path(labels)
  if path.suffix in TABLES and not path.is_file():
    raise FileNotFoundError(f'--labels={labels}: no such file')
  if not path.is_file():
    label_N = np.asarray(table.column(labels))
  elif path.suffix == '.npy':
    label_N = np.load(path, allow_pickle=False)
  elif path.suffix == '.txt':
    label_N = np.array(path.read_text(encoding='utf-8').split('\n'))
    # A newline at the end of the file is no label.
    label_N = label_N[:len(label_N) - (label_N[-1] == '')]
  else:
    label_N = column(path)
  if label_N.shape != (table.shape[0],):
    raise ValueError(f'--labels={labels}: {label_N.shape} labels for '
                     f'{table.shape[0]} embeddings, expected one of each')
  return label_N


def column(path: pathlib.Path) -> np.ndarray:
  """Returns the column 'label' of a table, or its only column."""
  if path.suffix == '.parquet':
    data = pd.read_parquet(path)
  else:
    data = pd.read_csv(path, sep={'.tsv': '\t'}.get(path.suffix, ','))
  if 'label' in data:
    return data['label'].to_numpy()
  if data.shape[1] == 1:
    return data.iloc[:, 0].to_numpy()
  raise ValueError(f"{path}: no column 'label' among {', '.join(data)}")


def folded(path: pathlib.Path, z_ND: np.ndarray, label_N: np.ndarray,
           group_N: np.ndarray | None = None
           ) -> tuple[tasks.Task, dict[str, np.ndarray]]:
  """Returns (task, embeddings) of labelled embeddings in five folds.

  Args:
    path: gives the task its name.
    z_ND: embeddings.
    label_N: one label of each.
    group_N: of clips that must stay in one fold, or None.

  Raises:
    ValueError: fewer than two labels, or a fold with a single one.
  """
  # As text, whatever type the file has them in.
  names, index_N = np.unique([str(x) for x in label_N], return_inverse=True)
  if len(names) < 2:
    raise ValueError(f'{path}: {len(names)} label, expected at least 2')
  units_N = np.arange(len(z_ND))
  if group_N is not None:
    units_N = np.unique(np.asarray(group_N).astype(str), return_inverse=True)[1]
  # Units of one label are dealt out in turn, so that folds have equal shares.
  rng = np.random.default_rng(SEED)
  # A unit has the label of its first clip.
  first_U = np.unique(units_N, return_index=True)[1]
  # By label (the last key counts most), and at random within a label.
  order = np.lexsort((rng.random(len(first_U)), index_N[first_U]))
  fold_U = np.empty(len(first_U), int)
  fold_U[order] = np.arange(len(first_U)) % FOLDS
  fold_N = fold_U[units_N]
  rows = {f'fold{k}': np.flatnonzero(fold_N == k) for k in range(FOLDS)}
  for split, own in rows.items():
    if len(np.unique(index_N[own])) < 2:
      raise ValueError(f'{path}: {split} would have one label in {len(own)} '
                       'clips, expected more clips or groups of each label')
  groups = None
  if group_N is not None:
    groups = {split: tuple(str(x) for x in np.asarray(group_N)[own])
              for split, own in rows.items()}
  task = tasks.Task(
      name=path.stem, folder=path.parent, metadata={'task_name': path.stem},
      embedding_type='scene', prediction_type='multiclass',
      split_mode='new_split_kfold', splits=tuple(rows), labels=tuple(names),
      files={split: tuple(map(str, own)) for split, own in rows.items()},
      targets={split: np.eye(len(names), dtype=np.uint8)[index_N[own]]
               for split, own in rows.items()},
      paths={}, rate=0, sample_duration=None, evaluation=('top1_acc',),
      groups=groups)
  return task, {split: z_ND[own] for split, own in rows.items()}
