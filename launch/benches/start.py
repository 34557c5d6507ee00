"""From the start of a process to its first step: cold, and compiled before.

CPU seconds of the whole process, start-up of Python and jax, reading the
corpus, compilation or its cache, and one step; evaluation and checkpoint left
out.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from launch.benches import timing

ONE_STEP = '''
import sys
import jax
jax.config.update('jax_compilation_cache_dir', sys.argv[2])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
from audiorank import data, program, records, sharding, train
config = records.load_config(sys.argv[1])
on = sharding.mesh(1, 1)
subset = data.load(config.data.root)
stream = data.stream(subset, batch=config.train.batch,
                     samples=program.crop_samples(config.data.crop_seconds),
                     seed=0, first_step=0, process_index=0, process_count=1,
                     threads=1, resident=True)
with jax.set_mesh(on):
  _, placed, fresh = train.start(config, on)
  state = fresh()
  step = program.make_step(config, placed)
  _, got = step(state, sharding.to_global(next(stream), on),
                program.hyper(config))
  jax.block_until_ready(got)
'''


def spent(command, env):
  """Returns the CPU seconds of a process and its children."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run(command, env=env, check=True, capture_output=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def rows(quick, only):
  """Yields the Rows of this area."""
  from audiorank import prepare
  from audiorank import records
  from audiorank import synth
  from configs import base
  env = {**os.environ, 'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', '')}
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    synth.write_audio(folder / 'audio', .02, 0, progress=False)
    prepare.run(folder / 'audio', folder / 'corpus')
    for size in ('en128-12',) if quick else ('en128-12', 'en768-12'):
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
      cold = spent(command, env)
      warm = min(spent(command, env) for _ in range(1 if quick else 3))
      yield timing.alone(
          what, warm, 's', None, 'CPU seconds; at most 3 wanted',
          'compiled before', 'cold', cold)
