"""Compares test scores with those of hear-eval-kit, on the kit's embeddings.

  python -m audiorank.hear.parity --runs 'embeddings/my_model/*' --seeds 5

`--runs` matches folders that `heareval.predictions.runner` wrote: a task's
description, <split>.embeddings.npy and test.predicted-scores.json. Several
folders of one task (runs of the kit with other seeds) are one row. The table is
Markdown: task, score, the kit's mean, standard deviation and number of runs,
the same of ours over seeds, and the difference, also in standard errors.
"""

import collections
from collections.abc import Sequence
import glob
import json
import math
import os
import pathlib
from typing import Any

from absl import app
from absl import flags
import jax
import numpy as np

from audiorank import files
from audiorank.hear import probe
from audiorank.hear import scores
from audiorank.hear import tasks

_RUNS = flags.DEFINE_string(
    'runs', None, 'Glob of folders with embeddings and scores by the kit.',
    required=True)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Seeds of ours per task.')
# launch.evaluate has --grid_points and --protocol with other defaults, and one
# process may import both.
_POINTS = flags.DEFINE_integer('points', 8, 'Grid points of both.')
_PROTOCOL = flags.DEFINE_enum('predictor', 'hear', probe.PROTOCOLS, 'Ours.')
SCORES = 'test.predicted-scores.json'


def load(folder: str | os.PathLike[str]
         ) -> tuple[tasks.Task, dict[str, Any], float]:
  """Returns (task, embeddings, the kit's score) of one run of the kit.

  Args:
    folder: that the kit wrote.

  Raises:
    FileNotFoundError, ValueError: a file is missing or does not fit; names it.
  """
  folder = files.path(folder)
  task = tasks.load(folder, with_audio=False)
  embeddings: dict[str, Any] = {}
  for split in task.splits:
    shape = json.loads(
        (folder / f'{split}.embedding-dimensions.json').read_text())
    # In spite of its ending the kit's file is float32 without a header.
    z_ND = np.frombuffer(
        (folder / f'{split}.embeddings.npy').read_bytes(), '<f4')
    if z_ND.size != math.prod(shape):
      raise ValueError(f'{folder / split}.embeddings.npy: {z_ND.size} numbers, '
                       f'expected {shape}')
    z_ND = z_ND.reshape(shape)
    if task.embedding_type == 'scene':
      embeddings[split] = z_ND
      continue
    rows_of = collections.defaultdict(list)
    described = folder / f'{split}.filename-timestamps.json'
    for row, (file, ms) in enumerate(json.loads(described.read_text())):
      # The kit stores paths relative to the folder in which it ran.
      rows_of[pathlib.PurePosixPath(file).name].append((row, ms))
    for file, frames in rows_of.items():
      index_L, ms_L = zip(*frames)
      embeddings[file] = z_ND[list(index_L)], np.asarray(ms_L)
  kit = json.loads((folder / SCORES).read_text())
  if task.kfold:
    return task, embeddings, kit['aggregated_scores']['test_score_mean']
  return task, embeddings, kit['test']['test_score']


def row(folders: Sequence[str], seeds: int, grid_points: int,
        protocol: str) -> list[str]:
  """Returns the table's cells for the runs of one task.

  Args:
    folders: runs of the kit.
    seeds: number of ours.
    grid_points, protocol: see probe.evaluate.
  """
  loaded = [load(folder) for folder in folders]
  task, embeddings, _ = loaded[0]
  kit_R = np.asarray([score for _, _, score in loaded])
  ours_R = np.asarray([
      probe.evaluate(task, embeddings, grid_points=grid_points, seed=seed,
                     protocol=protocol)['score'] for seed in range(seeds)])
  # Both means vary by seed; their errors are independent.
  error = math.hypot(scores.std(kit_R) / math.sqrt(len(kit_R)),
                     scores.std(ours_R) / math.sqrt(len(ours_R)))
  gap = ours_R.mean() - kit_R.mean()
  return [task.metadata['task_name'], task.evaluation[0],
          f'{kit_R.mean():.3f}', f'{scores.std(kit_R):.3f} ({len(kit_R)})',
          f'{ours_R.mean():.3f}', f'{scores.std(ours_R):.3f} ({len(ours_R)})',
          f'{gap:+.3f}', f'{gap / error:+.1f}']


def main(_: list[str]) -> None:
  """Prints the table."""
  groups = collections.defaultdict(list)
  for folder in sorted(glob.glob(_RUNS.value)):
    if (pathlib.Path(folder) / SCORES).is_file():
      metadata = json.loads(
          (pathlib.Path(folder) / tasks.METADATA).read_text())
      groups[metadata['task_name']].append(folder)
  if not groups:
    raise SystemExit(f'{_RUNS.value}: no folder with a {SCORES}')
  head = ['task', 'score', 'kit', 'sd (runs)', 'ours', 'sd (seeds)',
          'difference', 'in standard errors']
  print('| ' + ' | '.join(head) + ' |')
  print('|' + '---|' * len(head))
  for _, folders in sorted(groups.items()):
    cells = row(folders, _SEEDS.value, _POINTS.value, _PROTOCOL.value)
    print('| ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  app.run(main)
