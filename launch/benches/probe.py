"""The HEAR protocol on given embeddings, whole command against whole command.

The rival is hear-eval-kit's own `heareval.predictions.runner`, unmodified, on
embeddings that its own first command made of an audiorank encoder; ours reads
the same folder. Wall time from start to end of the process, both on the same
cores; ours with nothing compiled before, and once more with the programs that
this left on disk, as every later command finds them. AUDIORANK_TASKS names a
folder of HEAR task folders; otherwise a task of the synthetic dataset is taken.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from launch.benches import timing

ROOT = pathlib.Path(__file__).parents[2]
KIT = ROOT / 'tests' / 'peers' / 'kit.py'
OURS = '''
import pathlib, sys
from launch import cli
cli.compile_cache()
from audiorank.hear import parity, probe
task, z, _ = parity.load(pathlib.Path(sys.argv[1]))
print(probe.evaluate(task, z, protocol='hear', grid_points=int(sys.argv[2]))[
    'score'])
'''
THEIRS = '''
import pathlib, sys
from audiorank.hear import parity
print(parity.load(pathlib.Path(sys.argv[1]))[2])
'''


def run(command: Sequence[Any], cwd: pathlib.Path,
        **more: str) -> tuple[float, str]:
  """Runs a Python command; returns (seconds, standard output).

  Args:
    command: arguments of Python.
    cwd: its current folder.
    more: further environment variables.

  Raises:
    ValueError: it failed.
  """
  # The process runs in another folder and must find this package.
  path = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  env = {**os.environ, **more, 'JAX_PLATFORMS': 'cpu',
         'PYTHONPATH': os.pathsep.join(path)}
  began = time.monotonic()
  done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=env,
                        capture_output=True, text=True)
  if done.returncode:
    raise ValueError(f'{command}: {done.stderr[-2000:]}')
  return time.monotonic() - began, done.stdout


def write_weights(path: pathlib.Path) -> pathlib.Path:
  """Writes an untrained encoder in the published layout; returns its path."""
  import jax
  from safetensors import numpy as safetensors

  from audiorank import dasheng
  from audiorank import records
  from audiorank import train_state
  from configs import base
  config = records.frozen(base.get_config('en128-12'))
  state = train_state.init(config, jax.random.key(0))
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  safetensors.save_file(dasheng.to_state_dict(config, variables), path)
  return path


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from audiorank import synth
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    root: Any = os.environ.get('AUDIORANK_TASKS')
    if not root:
      synth.write_tasks(folder, 0, names=['timbre'], progress=False,
                        clips_per_task=timing.sized(
                            quick, (60, 20, 20), (400, 150, 400)))
      root = folder / 'tasks'
    names = sorted(p.parent.name for p in pathlib.Path(root).glob(
        '*/task_metadata.json'))
    points = timing.sized(quick, 2, 8)
    for name in names:
      what = f'HEAR protocol, {points} grid points, {name}'
      if only not in what:
        continue
      if not importlib.util.find_spec('heareval'):
        yield timing.absent(what, 'heareval')
        continue
      # The kit embeds the clips, so that both sides score the same embeddings.
      # Untrained weights: the time of a probe does not depend on what the
      # encoder has learned.
      weights = write_weights(folder / 'weights.safetensors')
      run([KIT, 'heareval.embeddings.runner', 'audiorank.hear.api',
           '--model', weights, '--tasks-dir', root, '--task', name], folder)
      task = folder / 'embeddings' / 'audiorank.hear.api' / name
      theirs, _ = run([KIT, 'heareval.predictions.runner', task,
                       '--grid-points', points], folder)
      _, kit_score = run(['-c', THEIRS, task], folder)
      # The same command twice: the first fills the cache.
      for how in ('nothing compiled before', 'compiled before'):
        mine, score = run(['-c', OURS, task, points], folder,
                          AUDIORANK_CACHE=str(folder / f'compiled-{name}'))
        yield timing.alone(
            what, mine, 's', 5., f'score {float(score):.3f}, of the kit '
            f'{float(kit_score):.3f}', how, 'hear-eval-kit', theirs)
