"""Time to the first step: of a process, cold and warm, and of a further run.

Of a process, these are CPU seconds until the first step begins, and until the
process has ended after it: start of Python and jax, opening the corpus,
initialisation, and compilation or loading from jax's cache. Evaluation and
checkpoints are not included.

Of a further run of a shape, they are the CPU seconds of a worker from its claim
to the end of its first step, with the evaluation at step 0.
"""

from collections.abc import Iterator
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from launch.benches import timing

ONE_STEP = '''
import sys
import time
import jax
jax.config.update('jax_compilation_cache_dir', sys.argv[2])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
from audiorank import config as config_lib
from audiorank import data, records, sharding, train_state
config = records.load_config(sys.argv[1])
mesh = sharding.mesh(1, 1)
subset = data.load(config.data.root)
stream = data.stream(subset, batch=config.train.batch,
                     samples=config_lib.crop_samples(config.data.crop_seconds),
                     seed=0, first_step=0, process_index=0, process_count=1,
                     threads=1, resident=True)
with jax.set_mesh(mesh):
  programs = train_state.programs(config, mesh)
  h = train_state.make_hparams(config)
  wave_BS = sharding.to_global(next(stream), mesh)
  arguments = jax.block_until_ready((programs.init(h), wave_BS, h))
  step = programs.step.lower(*arguments).compile()
  print(time.process_time())
  jax.block_until_ready(step(*arguments))
'''

# A worker that trains two runs of a shape, one step each.
TWO_RUNS = '''
import sys
import time
from absl import flags
from audiorank import files
from launch import run_queue, work
flags.FLAGS(sys.argv[:1])
began, spent = [], []
claim = run_queue.claim

def timed(*arguments):
  began.append(time.process_time())
  return claim(*arguments)

class Status(work.Report):
  def report(self, doing, step=None, steps=None, force=False):
    if doing == 'training' and step == 1:
      spent.append(time.process_time() - began[-1])

  def busy(self): pass
  def idle(self): pass

run_queue.claim = timed
board = run_queue.Board(files.path(sys.argv[1]))
code = work.Worker(board, ['train'], 1, 1, Status()).run()
assert code == 0 and len(spent) == 2, (code, spent)
print(*spent)
'''


def second_run(folder: pathlib.Path, env: dict[str, str]) -> timing.Row:
  """Returns the Row of a worker's second run of a shape.

  Args:
    folder: of the corpus; the sweep is written there.
    env: of the worker.
  """
  from audiorank import records
  from configs import quickstart
  from launch import grid
  root, configs = folder / 'two', {}
  # Runs that differ in their seed alone share every program.
  for seed in range(2):
    c = quickstart.get_config()
    c.seed = seed
    c.data.update({'root': str(folder / 'corpus'), 'hours': 0.,
                   'valid_fraction': .3})
    c.train.update({'steps': 1, 'log_every': 1})
    c.opt.warmup = 0
    c.monitor.update({'clips': 50, 'batch': 50, 'num_evals': 2,
                      'first_eval': 1, 'valid_clips': 0})
    configs[str(seed)] = c
  # Without the untrained baseline, which takes no step.
  runs = {run_id: run for run_id, run in grid.runs(configs).items()
          if run[0].train.steps}
  for run_id, (config, _) in runs.items():
    records.open_run(root / run_id, config)
  grid.write_index(root, 'Two runs of a shape', 'two', runs)
  output = subprocess.run([sys.executable, '-c', TWO_RUNS, str(root)], env=env,
                          check=True, capture_output=True, text=True).stdout
  # Whatever else the worker prints comes before.
  first, second = map(float, output.split()[-2:])
  return timing.alone('claim to first step, second run of a shape', second,
                      's', None, 'CPU seconds; at most .5 wanted',
                      'second run', 'first run', first)


def spent(command: list[str], env: dict[str, str]) -> tuple[float, float]:
  """Runs a process; returns two times in CPU seconds.

  The first is the number that the process prints, the second the total of the
  process and its children.
  """
  # CPU time, as wall time would include other processes.
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  output = subprocess.run(command, env=env, check=True, capture_output=True,
                          text=True).stdout
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return float(output), ((after.ru_utime - before.ru_utime)
                         + (after.ru_stime - before.ru_stime))


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from audiorank import prepare
  from audiorank import records
  from audiorank import synth
  from configs import base
  env = {**os.environ, 'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', '')}
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    synth.write_audio(folder / 'audio', .02, 0, progress=False)
    prepare.run(folder / 'audio', folder / 'corpus')
    for size in timing.sized(quick, ('en128-12',), ('en128-12', 'en768-12')):
      what = f'start to first step, {size}'
      if only not in what:
        continue
      c = base.get_config(size)
      c.data.root, c.data.crop_seconds = str(folder / 'corpus'), 2.
      c.data.valid_fraction = 0.
      c.train.batch = 4
      records.open_run(folder / size, c)
      command = [sys.executable, '-c', ONE_STEP, str(folder / size),
                 str(folder / f'cache-{size}')]
      # The first process fills the cache that the others read.
      cold = spent(command, env)
      # The least of several: other processes can only add to it.
      warm = [min(times) for times in zip(*(
          spent(command, env) for _ in range(timing.sized(quick, 1, 3))))]
      for part, mine, rival, note in (
          ('', warm[0], cold[0], 'CPU seconds; at most 3 wanted'),
          (' and its end', warm[1], cold[1], 'CPU seconds, with the step')):
        yield timing.alone(what + part, mine, 's', None, note,
                           'compiled before', 'cold', rival)
    if only in 'claim to first step, second run of a shape':
      yield second_run(folder, env)
