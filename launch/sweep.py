"""Runs every point of a config and reports; run it again to resume.

  python -m launch.sweep --config=configs/quickstart.py --root=runs/quickstart

  python -m launch.sweep plan --config=FILE      only estimate the cost
  python -m launch.sweep plan --config=FILE --topology=v5e:16x16   on a TPU
                                                 slice, compiled for it
  python -m launch.sweep write --config=FILE --root=DIR   only its folders, for
                                                 workers started elsewhere
  python -m launch.sweep status --root=DIR       the state of every run
  python -m launch.sweep retry --root=DIR        let failed runs be tried again
  python -m launch.sweep next --root=DIR --budget=1e13   what to scale next:
                                                 prints it, and writes a config
  python -m launch.sweep --halving=auto --config=FILE --root=DIR   stop runs
                                                 early whose score will be low
  python -m launch.sweep reproduce --table=runs.parquet --share=.1 --seed=0
      --config=FILE --root=DIR                   train a random tenth of a
                                                 published sweep's runs again,
                                                 and compare
  python -m launch.sweep --engine=ray --address=auto --config=FILE --root=DIR
                                                 on a Ray cluster

Besides the points of the config, the untrained baseline of every architecture
and seed is evaluated. Fields can be overridden for all points:
--config.data.root=CORPUS --config.eval.tasks=TASKS. With other fields, points
or tasks the same root gets further runs and scores.

There is one worker per GPU or TPU chip of this machine, or per core of a CPU.
To add another machine that can access the root, run the same command there.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import os
import pathlib
import signal
import sys
import time
from types import ModuleType
from typing import Any
from typing import IO
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from audiorank import files
from audiorank import validate
from launch import cli
from launch import devices as machine
from launch import grid
from launch import halving
from launch import next as next_runs
from launch import overview
from launch import reproduce
from launch import run_queue
from launch.engines import local

WORDS = ('run', 'plan', 'write', 'status', 'retry', 'next', 'reproduce')
_ROOT = flags.DEFINE_string('root', '', 'Folder of the sweep.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/ with points().')
_DEVICES = flags.DEFINE_string(
    'devices', 'auto', "GPUs or TPU chips to use: a number, 'auto' for all, "
    "or 'cpu' for none.")
_PER_DEVICE = flags.DEFINE_integer(
    'per_device', 1, 'Workers that share a GPU. Runs of one shape share a '
    'program first, see --pack.', lower_bound=1)
_ENGINE = flags.DEFINE_enum(
    'engine', 'local', ['local', 'ray'],
    'Workers are started by this process or by a Ray cluster.')
_ADDRESS = flags.DEFINE_string(
    'address', 'local', "Of the Ray cluster: 'auto', host:port, or 'local', "
    'which starts one on this machine.')
_CORES = flags.DEFINE_integer(
    'cores', 1, 'Cores of a worker, for ray.', lower_bound=1)
_GPUS = flags.DEFINE_integer('gpus', 0, 'GPUs of a worker, for ray.',
                             lower_bound=0)
_SLICE = flags.DEFINE_string(
    'slice', '', 'TPU slice of a run, for ray: such as v4:2x2x2.')
_SCALE = flags.DEFINE_enum('scale', None, ['paper', 'small', 'smoke'],
                           'Scale of an experiment: see configs/scales.py.')
_TOPOLOGY = flags.DEFINE_string(
    'topology', None, 'TPU slice to plan for, such as v5e:16x16 or v4:4x4x4.')
_PRICE = flags.DEFINE_float(
    'price', 0., 'Price of a chip-hour (of an hour of one worker on a CPU): '
    'for plan, for next, and in the report for what to scale next.',
    lower_bound=0.)
_EFFORT = flags.DEFINE_enum(
    'effort', 'quick', ['quick', 'full'], 'Effort of the compiler, for plan.')
_MESH = flags.DEFINE_enum(
    'mesh', '', ['', 'auto'],
    "The plan's mesh: the config's, or the fastest that fits.")
_REPORT = flags.DEFINE_boolean(
    'report', True, 'Write report.html, while the sweep runs and at its end.')
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Workers on a CPU: by default one per core, if memory '
    'suffices. For ray, by default as many as the cluster has room for.',
    lower_bound=1)
_PACK = flags.DEFINE_integer(
    'pack', 0, 'Runs of one shape that train in one program; 0 takes as many '
    'as fit on an accelerator, and 1 on a CPU, where more are not faster.',
    lower_bound=0)
_HALVING = flags.DEFINE_list(
    'halving', [], 'Stop runs early whose predicted final score is low: auto, '
    'or the shares of training at which half of the runs is stopped, such as '
    '.1,.25. Without it the runs that were stopped go on.')
_TABLE = flags.DEFINE_string(
    'table', None, 'For reproduce: runs.parquet of the sweep to be checked.')
_SHARE = flags.DEFINE_float(
    'share', .1, 'For reproduce: of its runs, how many are trained again.')
_SEED = flags.DEFINE_integer('seed', 0, 'For reproduce: of the choice.')
_ROLES = flags.DEFINE_list(
    'roles', list(run_queue.ROLES), 'What workers do: train, score or both.')


class Place(NamedTuple):
  """The devices for workers, determined before anything is written."""
  slots: list[machine.Slot]
  locks: list[IO[str]]  # Of the devices, until this process ends.
  text: str  # Description for messages.


def plan(module: ModuleType) -> None:
  """Prints the cost of a grid on this machine or on a TPU slice."""
  configs = grid.points(module, cli.overrides('config'), _SCALE.value)
  # Corpus and tasks may not be there yet.
  for config in configs.values():
    validate.fields(config, grid.devices_needed(config, None))
  if _TOPOLOGY.value is None:
    print(overview.plan(configs, _WORKERS.value or machine.cores()))
    return
  from launch.tpu import plan as tpu_plan
  costs = tpu_plan.plan(configs, _TOPOLOGY.value, _PRICE.value, _EFFORT.value,
                        _MESH.value)
  print(tpu_plan.table(costs))
  # One file a config and slice: a new plan replaces the old one.
  name = (f'{pathlib.Path(str(module.__file__)).stem}-'
          f'{_TOPOLOGY.value.replace(":", "-")}.json')
  root = files.cache_folder('plans')
  if _ROOT.value:
    root = files.path(_ROOT.value, '--root')
  tpu_plan.save(costs, root / name)
  print(root / name)


def place(configs: Mapping[str, Any], environ: Mapping[str, str]) -> Place:
  """Checks configs and locks the devices; returns the slots of this machine.

  Raises:
    ValueError: flags that this machine cannot meet; a config that no slot
      can run; a device that another process uses.
  """
  # Nothing is written before all of this has passed.
  there = machine.find(environ)
  devices = machine.choose(there, _DEVICES.value)
  if devices.kind != 'cpu' and _WORKERS.value:
    raise ValueError(f'--workers={_WORKERS.value}: sets the workers of a CPU; '
                     f'here are {len(devices.ids)} {devices.kind}s, of which '
                     '--devices takes some')
  machine.check_software(devices)
  size = grid.check(configs, devices)
  workers = _WORKERS.value or grid.cpu_workers(configs)
  slots = machine.slots(devices, size, _PER_DEVICE.value, workers, environ)
  text = f'{len(slots)} workers'
  if devices.kind != 'cpu':
    text += f' on {len(devices.ids)} {devices.kind}s'
  # Locked last, since a mistake in the flags should not wait for a device.
  return Place(slots, machine.hold(devices), text)


def engine(configs: Mapping[str, Any], environ: Mapping[str, str]
           ) -> tuple[Callable[..., list[str]], str]:
  """Returns a function that starts the workers, and its name for messages.

  The function takes (board, arguments of a worker, roles, show) and returns
  the runs that no worker could do.
  """
  if _ENGINE.value == 'local':
    here = place(configs, environ)
    run = functools.partial(
        local.run, slots=here.slots, locks=here.locks, environ=environ)
    return run, here.text
  from launch.engines import ray_cluster
  needs = ray_cluster.needs(_CORES.value, _GPUS.value, _SLICE.value)
  # Before jax is used: Ray forks, which can deadlock once jax has threads.
  ray_cluster.connect(_ADDRESS.value)
  grid.check(configs, None)
  return functools.partial(ray_cluster.run, needs=needs,
                           most=_WORKERS.value), 'by Ray'


def write(root: pathlib.Path, module: ModuleType, configs: dict[str, Any],
          where: str) -> list[str]:
  """Writes the folders of a sweep's runs, and prints how many are new.

  Runs that exist are not changed, except that failed ones are tried again.

  Args:
    root: the sweep's folder.
    module: the config file, imported.
    configs: {point: config}.
    where: description of the workers, for the message.

  Returns:
    the names of the runs.
  """
  from audiorank import records
  from launch import synthetic
  rungs = halving.shares(_HALVING.value)
  # Paths and checksums first: they are part of a run's identity.
  grid.resolve(configs, lambda config: synthetic.dataset(
      root / 'world', config))
  runs = grid.runs(configs)
  if rungs:
    halving.check(sum(config.train.steps > 0 for config, _ in runs.values()))
  grid.check_corpus(config for config, _ in runs.values())
  # Before folders are created, so that new and known runs can be told apart.
  known = files.names(root) & set(runs)
  files.mapped(lambda run_id: grid.open_run(root / run_id, runs[run_id][0]),
               runs, root)
  experiment = next(iter(configs.values())).experiment
  # Folders before the index: a worker that reads it finds every run.
  names = grid.write_index(root, title(module, root), experiment, runs)
  if rungs:
    halving.begin(root, run_queue.Board(root, runs).entries, rungs)
  else:
    halving.end(root, runs)
  again, diverged = run_queue.reopen(root, runs)
  states = files.mapped(records.state, [root / name for name in known], root)
  parts = [f'{len(runs) - len(known)} new', f'{len(known)} known',
           f'{states.count("done")} done before']
  if states.count('halved'):
    parts.append(f'{states.count("halved")} stopped early')
  if again:
    parts.append(f'{again} failed before and are tried again')
  if diverged:
    parts.append(f'{diverged} diverged before (retry tries them again)')
  print(f'{len(runs)} runs: {", ".join(parts)}; {where}; {root}', flush=True)
  # Runs of earlier commands in the same root.
  others = files.mapped(records.state, [
      root / name for name in names if name not in runs], root)
  unfinished = len(others) - sum(map(others.count, (
      'done', 'failed', 'halved')))
  if unfinished:
    print(f'{unfinished} unfinished runs of earlier commands are left as they '
          'are', flush=True)
  return list(runs)


def title(module: ModuleType, root: pathlib.Path) -> str:
  """Returns the title of a sweep in its report."""
  text = (module.__doc__ or root.name).strip().splitlines()[0]
  corpus = cli.overrides('config').get('data.root')
  if corpus:
    text = f'{text.split(":")[0]} on {files.path(corpus).resolve().name}'
  return text


def run(module: ModuleType, environ: Mapping[str, str],
        configs: dict[str, Any]) -> None:
  """Runs a sweep and writes its report.

  Args:
    module: the config file, imported.
    environ: of the workers.
    configs: {point: config}.
  """
  began = time.monotonic()
  run_queue.check_roles(_ROLES.value)
  root = files.path(_ROOT.value, '--root')
  # Before the root exists: a mistake in the flags leaves nothing behind.
  start, where = engine(configs, environ)
  root.mkdir(parents=True, exist_ok=True)
  ids = write(root, module, configs, where)
  board = run_queue.Board(root, ids)
  # Logs are written to a disk, and sent to a bucket at the end.
  logs = files.beside(root) / 'logs'
  logs.mkdir(parents=True, exist_ok=True)
  # By process, as several commands may work on one root.
  listing = logs / f'{os.getpid()}.runs'
  # A file, because thousands of runs do not fit into a command line.
  listing.write_text('\n'.join(ids), encoding='utf-8')
  page = None
  if _REPORT.value:
    page = title(module, root)
  meter = overview.Meter(root, page)
  arguments = [f'--root={root}', f'--runs={listing}', f'--pack={_PACK.value}',
               f'--roles={",".join(_ROLES.value)}']
  try:
    unfinished = start(board, arguments, roles=_ROLES.value, show=meter.show)
  # Workers have saved: the engines wait for them before they raise this.
  except KeyboardInterrupt:
    meter.close()
    print('\nstopped; run the same command to resume', file=sys.stderr)
    sys.exit(cli.AGAIN)
  finally:
    listing.unlink(missing_ok=True)
    if files.is_on_bucket(root):
      files.send(logs, root / 'logs')
  meter.close()
  finish(root, board, unfinished, began)


def finish(root: pathlib.Path, board: run_queue.Board, unfinished: list[str],
           began: float) -> None:
  """Prints the table of a sweep's runs and its failures; writes its report.

  Args:
    root: the sweep's folder.
    board: its runs.
    unfinished: runs that no worker could do.
    began: time.monotonic() at the beginning.

  Raises:
    SystemExit: 1 if a run has failed or is unfinished.
  """
  from audiorank import progress
  from audiorank import records
  tables = records.collect(root)
  # The table of this command's runs; the report has all of the root.
  ours = tables.runs[tables.runs['run_id'].isin(board.states)]
  print(overview.table(ours.sort_values(
      ['width', 'depth', 'untrained', 'hours'])))
  print(f'{progress.clock(time.monotonic() - began)} in all')
  # Workers that only train leave no scores to report.
  if _REPORT.value and 'score' in _ROLES.value:
    from audiorank import report as pages
    try:
      print(pages.write(root, price=_PRICE.value))
    except ValueError as error:
      print(f'no report: {error}', file=sys.stderr)
  failed = {run_id: overview.reason(root / run_id)
            for run_id, state in board.states.items() if state == 'failed'}
  # To this command an unfinished run is a failure as well.
  failed |= dict.fromkeys(unfinished, 'not done: see logs/')
  for run_id, why in failed.items():
    print(f'failed: {root / run_id}: {why}', file=sys.stderr)
  if failed:
    print(f'{len(failed)} of {len(board.states)} runs failed',
          file=sys.stderr)
    sys.exit(1)


def train_again(module: ModuleType, environ: Mapping[str, str],
                configs: dict[str, Any]) -> None:
  """Trains a random share of a table's runs, and prints both beside each other.

  Args:
    module: the config file, imported.
    environ: of the workers.
    configs: {point: config} of the whole sweep.

  Raises:
    ValueError: no table; runs of it that are no points of the config.
    SystemExit: 1 if the runs differ by more than seeds do, or one has failed.
  """
  from audiorank import records
  from launch import synthetic
  if not _TABLE.value:
    raise ValueError('--table=FILE: expected runs.parquet of the sweep to be '
                     'checked')
  root = files.path(_ROOT.value, '--root')
  runs = reproduce.published(_TABLE.value)
  run_ids = reproduce.choose(runs, _SHARE.value, _SEED.value)
  # The corpus is part of a run's identity.
  grid.resolve(configs, lambda config: synthetic.dataset(
      root / 'world', config))
  run(module, environ, reproduce.points(configs, run_ids, _TABLE.value))
  compared = reproduce.compare(runs, records.load(root).runs, run_ids)
  print('\n'.join(reproduce.lines(compared)))
  if compared.verdict == reproduce.APART:
    sys.exit(1)


def leave_devices() -> None:
  """Makes this process compute on the CPU; the workers need the devices.

  See launch/devices.py.
  """
  os.environ['JAX_PLATFORMS'] = 'cpu'
  # If jax has been imported, it has read the environment already.
  import jax
  jax.config.update('jax_platforms', 'cpu')


def main(argv: list[str]) -> None:
  """Runs the command."""
  words = argv[1:] or ['run']
  if len(words) > 1 or words[0] not in WORDS:
    raise ValueError(f'{" ".join(words)!r}: expected nothing or one of '
                     f'{", ".join(WORDS[1:])}{cli.nearest(words[0], WORDS)}')
  word = words[0]
  if word != 'plan' and not _ROOT.value:
    raise ValueError('--root=DIR: expected the folder of the sweep')
  if word == 'retry':
    for workdir in overview.retry(_ROOT.value):
      print(f'{workdir}: will be tried again')
  if word in ('status', 'retry'):
    print(overview.status(_ROOT.value))
    return
  if word == 'next':
    leave_devices()
    next_runs.main(_ROOT.value, _PRICE.value)
    return
  if _CONFIG.value is None:
    raise ValueError('--config=FILE: expected a file of configs/')
  module = cli.config_module('config')
  if not hasattr(module, 'points'):
    raise ValueError(f'{module.__file__}: no points(): a sweep needs one')
  if word == 'plan':
    plan(module)
    return
  # Copied before `leave_devices` changes it: workers get the environment that
  # the user set.
  environ = dict(os.environ)
  leave_devices()
  # An exception, so that `finally` blocks stop the workers.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(cli.AGAIN))
  configs = grid.points(module, cli.overrides('config'), _SCALE.value)
  if word == 'reproduce':
    train_again(module, environ, configs)
    return
  if word == 'run':
    run(module, environ, configs)
    return
  grid.check(configs, None)
  root = files.path(_ROOT.value, '--root')
  root.mkdir(parents=True, exist_ok=True)
  write(root, module, configs, 'no worker started')


if __name__ == '__main__':
  cli.run(main, words=True)
