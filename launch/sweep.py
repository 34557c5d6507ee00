"""Runs every point of a config and reports; the same command goes on.

  python -m launch.sweep --config=configs/quickstart.py --root=runs/quickstart

  python -m launch.sweep --engine=ray --address=auto --config=FILE --root=DIR
                                                 over a Ray cluster
  python -m launch.sweep plan --config=FILE      what it would cost
  python -m launch.sweep plan --config=FILE --topology=v5e:16x16   on a TPU
                                                 slice, compiled for it
  python -m launch.sweep write --config=FILE --root=DIR   its folders alone,
                                                 for launch.emit
  python -m launch.sweep status --root=DIR       how far it is
  python -m launch.sweep retry --root=DIR        failed runs are new again

Beside the points of the config, the untrained baseline of every architecture
and seed is measured. Fields are overridden for all points at once:
--config.data.root=CORPUS --config.eval.tasks=TASKS.
"""

import inspect
import os
import pathlib
import signal
import sys
import time

from absl import flags
from ml_collections import config_flags

from audiorank import files
from launch import cli
from launch import overview
from launch import pool

WORDS = ('run', 'plan', 'write', 'status', 'retry')
_ROOT = flags.DEFINE_string('root', None, 'Folder of the sweep.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/ with points().')
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Runs at once; by default one per core, at most 8; for '
    'ray, all that there is room for.', lower_bound=1)
_ENGINE = flags.DEFINE_enum(
    'engine', 'local', ['local', 'ray'],
    'Who starts the runs: this process, or a Ray cluster.')
_ADDRESS = flags.DEFINE_string(
    'address', 'local', "Of the Ray cluster: 'auto', host:port, or 'local', "
    'which starts one on this machine.')
_CORES = flags.DEFINE_integer(
    'cores', 1, 'Cores of a run, for ray.', lower_bound=1)
_GPUS = flags.DEFINE_integer('gpus', 0, 'GPUs of a run, for ray.',
                             lower_bound=0)
_SLICE = flags.DEFINE_string(
    'slice', '', 'TPU slice of a run, for ray: such as v4:2x2x2.')
_TOGETHER = flags.DEFINE_integer(
    'together', 1, 'Points that differ in seed, rates or initial scale alone '
    'are trained in one program, up to so many: small models fill a large '
    'chip. A CPU gains nothing.', lower_bound=1)
_SCALE = flags.DEFINE_enum('scale', None, ['paper', 'small', 'smoke'],
                           'Of an experiment: see configs/scales.py.')
_TOPOLOGY = flags.DEFINE_string(
    'topology', None, 'TPU slice to plan for, such as v5e:16x16 or v4:4x4x4.')
_PRICE = flags.DEFINE_float('price', 0., 'Of a chip-hour, for the plan.',
                            lower_bound=0.)
_EFFORT = flags.DEFINE_enum(
    'effort', 'quick', ['quick', 'full'], "Of the plan's compiler.")
_MESH = flags.DEFINE_enum(
    'mesh', '', ['', 'auto'],
    "The plan's mesh: the config's, or the fastest that fits.")
_REPORT = flags.DEFINE_boolean('report', True, 'Write report.html at the end.')


def resolve(module, changes, world):
  """Returns {point: config} of a config file, overrides applied.

  Args:
    module: the config file, imported.
    changes: {field: value} for every point.
    world: called with the first config where it names no corpus; returns
      (corpus, tasks).
  """
  from audiorank import data
  configs = points(module, changes)
  first = next(iter(configs.values()))
  if not first.data.root:
    corpus, tasks = world(first)
    for config in configs.values():
      config.data.root = corpus
      config.eval.tasks = config.eval.tasks or tasks
  elif not first.eval.tasks:
    raise ValueError('eval.tasks is empty: a corpus of your own needs '
                     '--config.eval.tasks=FOLDER of HEAR task folders')
  sha256 = data.load(first.data.root, first.data.mixture).sha256
  for config in configs.values():
    config.data.sha256 = sha256
    config.data.mixture = data.mixture.absolute(config.data.mixture)
    for part, field in (('data', 'root'), ('eval', 'tasks')):
      folder = files.path(config[part][field], f'{part}.{field}')
      config[part][field] = os.path.abspath(folder)
  return configs


def plan(configs):
  """Returns {run_id: (config, work)}, with untrained baselines, largest first.

  Work is FLOPs of training, the front end and evaluation as a flat share.
  """
  from audiorank import baselines
  from audiorank import program
  from audiorank import records
  runs = {}
  for config in [*configs.values(),
                 *(baselines.untrained(c) for c in configs.values())]:
    clip = (program.flops(config)['total']
            + overview.FRONT_END * config.data.crop_seconds)
    work = clip * config.train.batch * (config.train.steps + 200)
    runs[records.run_id(config)] = (config, work)
  return dict(sorted(runs.items(), key=lambda item: -item[1][1]))


def check(runs):
  """Raises ValueError for the first point that could never run."""
  import jax

  from audiorank import validate
  validate.sweep([config for config, _ in runs.values()], jax.device_count())


def plan_slice(module, configs):
  """Prints and saves the plan of a grid on a TPU slice."""
  from launch.pod import plan as pod_plan
  from launch.pod import store
  made = pod_plan.plan(configs, _TOPOLOGY.value, _PRICE.value, _EFFORT.value,
                       _MESH.value)
  print(pod_plan.table(made))
  name = (f'{pathlib.Path(module.__file__).stem}-'
          f'{_TOPOLOGY.value.replace(":", "-")}.json')
  root = files.path(_ROOT.value, '--root') if _ROOT.value else store.folder()
  pod_plan.save(made, root / name)
  print(root / name)


def points(module, changes):
  """Returns {point: config} of a config file, overrides applied.

  Raises:
    ValueError: --scale for a file that has none, or not that one; no points;
      a value that cannot be part of a run's name, such as a function.
  """
  from audiorank import records
  out, given = {}, [_SCALE.value] if _SCALE.value else []
  if given and not inspect.signature(module.points).parameters:
    raise ValueError(f'--scale={_SCALE.value}: {module.__file__} has one scale')
  with cli.of_file():
    for point in module.points(*given):
      out[point] = module.get_config(point)
  if not out:
    raise ValueError(f'{module.__file__}: points() is empty: expected the '
                     'arguments of get_config')
  for point, config in out.items():
    config.update_from_flattened_dict(changes)
    records.plain(config, f'{module.__file__}:{point}')
  return out


def engine(root, workers):
  """Returns (jobs, show) -> failures: who runs the jobs, checked and ready.

  Raises:
    ValueError: Ray is not there, or --slice is no slice.
  """
  if _TOGETHER.value > 1 and _ENGINE.value != 'local':
    raise ValueError(f'--together={_TOGETHER.value}: expected --engine=local')
  if _ENGINE.value == 'local':
    return lambda jobs, show: pool.run(root, jobs, workers, show)
  machine, _, topology = _SLICE.value.partition(':')
  if bool(machine) != bool(topology):
    raise ValueError(f'--slice={_SLICE.value}: expected such as v4:2x2x2')
  from launch import ray_engine
  needs = ray_engine.Needs(_CORES.value, _GPUS.value, machine, topology)
  ray_engine.connect(_ADDRESS.value)
  return lambda jobs, show: ray_engine.run(
      root, jobs, needs, show, most=_WORKERS.value)


def main(argv):
  words = argv[1:] or ['run']
  if len(words) > 1 or words[0] not in WORDS:
    raise ValueError(f'{" ".join(words)!r}: expected nothing or one of '
                     f'{", ".join(WORDS[1:])}{cli.nearest(words[0], WORDS)}')
  if words[0] != 'plan' and _ROOT.value is None:
    raise ValueError('--root=DIR: expected the folder of the sweep')
  if words[0] in ('status', 'retry'):
    if words[0] == 'retry':
      for workdir in overview.retry(_ROOT.value):
        print(f'{workdir}: no longer failed')
    print(overview.status(_ROOT.value))
    return
  if _CONFIG.value is None:
    raise ValueError('--config=FILE: expected a file of configs/')
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(pool.AGAIN))
  from launch import world
  module = cli.config_module('config')
  if not hasattr(module, 'points'):
    raise ValueError(f'{module.__file__}: no points(): a sweep needs one')
  workers = _WORKERS.value or min(pool.cores(), 8)
  if words[0] == 'plan':
    configs = points(module, cli.overrides('config'))
    if _TOPOLOGY.value is None:
      print(overview.plan(configs, workers))
    else:
      plan_slice(module, configs)
    return
  began = time.monotonic()
  root = files.path(_ROOT.value, '--root')
  root.mkdir(parents=True, exist_ok=True)
  # Ray forks, which it must not once jax has its threads.
  start = engine(root, workers)
  configs = resolve(module, cli.overrides('config'),
                    lambda c: world.default(root / 'world', c))
  runs = plan(configs)
  check(runs)
  from audiorank import progress
  from audiorank import records
  for run_id, (config, _) in runs.items():
    records.open_run(root / run_id, config)
  title = (module.__doc__ or root.name).strip().splitlines()[0]
  given = cli.overrides('config').get('data.root')
  if given:
    title = f'{title.split(":")[0]} on {pathlib.Path(given).resolve().name}'
  records.write_json(root / 'sweep.json', {
      'title': title,
      'runs': sorted(runs)})
  if words[0] == 'write':
    print(f'{len(runs)} runs written; {root}')
    return
  todo = [r for r in runs if records.state(root / r) != 'done']
  where = f'{workers} at once' if _ENGINE.value == 'local' else 'by Ray'
  print(f'{len(runs)} runs, {len(runs) - len(todo)} done before; '
        f'{where}; {root}', flush=True)
  jobs = pool.grouped(runs, _TOGETHER.value)
  bar = progress.Bar(1000, int(1000 * pool.share(root, jobs)), 'sweep')

  def show(share):
    bar.step(int(1000 * share) - bar.at)
    done = sum(records.state(root / r) == 'done' for r in runs)
    bar.note(f'{done}/{len(runs)} runs done')

  try:
    failed = start(jobs, show)
  except KeyboardInterrupt:
    bar.close()
    print('\nstopped; the same command goes on', file=sys.stderr)
    sys.exit(pool.AGAIN)
  bar.close()
  made = records.collect(root)
  ours = made.runs[made.runs['run_id'].isin(list(runs))]
  print(overview.table(ours.sort_values(
      ['width', 'depth', 'untrained', 'hours'])))
  for run_id, error in failed.items():
    print(f'failed: {root / run_id}: {error}', file=sys.stderr)
  print(f'{progress.clock(time.monotonic() - began)} in all')
  if _REPORT.value and len(failed) < len(runs):
    from audiorank import report
    print(report.write(root))
  if failed:
    sys.exit(1)


if __name__ == '__main__':
  cli.run(main, words=True)
