"""What one GPU does as users run it: packed runs, a whole sweep.

  python -m launch.bench card           at most three minutes, on a GPU
  python -m launch.bench card --quick   the same at toy size, on any machine

The most important row first; each is printed as it ends, and what the time
does not suffice for is said to be left out.
"""

from collections.abc import Iterator
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from typing import Any

from launch.benches import timing
from launch.engines import local

SECONDS, QUICK = 170., 900.  # For all of it; --quick runs on slow machines.
OFFICIAL = 3_928  # Clips/s of the official trainer at this size on an H200.
POINTS = '''"""Runs of one shape that differ in their seed."""
from configs import base

def get_config(point='0'):
  c = base.get_config('{size}')
  c.seed = int(point)
  c.model.decoder.update({{'width': 64, 'depth': 2, 'heads': 2}})
  c.model.target_frames = 208
  c.data.update({{'root': '{corpus}', 'crop_seconds': {crop},
                 'valid_fraction': .2, 'in_memory': True}})
  c.mask.group_size = 1
  c.train.update({{'steps': {steps}, 'batch': {batch}, 'log_every': 10}})
  c.opt.warmup = 5
  c.monitor.update({{'clips': 64, 'crop_seconds': {crop}, 'num_evals': 2,
                    'first_eval': {steps}, 'batch': 64,
                    'valid_clips': {batch}}})
  c.checkpoint.update({{'save_every': {steps}, 'keep_every': 10**6}})
  c.eval.update({{'tasks': '{tasks}', 'protocol': 'logistic'}})
  return c

def points():
  return [str(seed) for seed in range({count})]
'''


class Sweeps:
  """Starts sweeps of one corpus, until the time is up.

  Args:
    folder: where they lie.
    quick: whether they are small.
  """

  def __init__(self, folder: pathlib.Path, quick: bool):
    from audiorank import prepare
    from audiorank import synth
    self.folder, self.quick = folder, quick
    self.end = time.monotonic() + timing.sized(quick, QUICK, SECONDS)
    hours = timing.sized(quick, .02, .1)
    synth.write_audio(folder / 'audio', hours, 0, progress=False)
    prepare.run(folder / 'audio', folder / 'corpus')
    synth.write_tasks(folder, 0, clips_per_task=(12, 6, 6), names=['timbre'],
                      progress=False)
    self.shape: dict[str, Any] = {
        'size': 'en64-4', 'batch': 64, 'steps': 200, 'crop': 2.07}
    if quick:
      self.shape = {'size': 'en32-1', 'batch': 8, 'steps': 20, 'crop': .6}

  def left(self) -> float:
    """Returns the seconds that are left."""
    # At least 1: with a timeout of 0, one that has just ended would be late.
    return max(1., self.end - time.monotonic())

  def start(self, name: str, count: int, *flags: str,
            **env: str) -> subprocess.Popen:
    """Starts a sweep of `count` seeds, training alone."""
    config = self.folder / f'{name}.py'
    config.write_text(POINTS.format(
        corpus=self.folder / 'corpus', tasks=self.folder / 'tasks',
        count=count, **self.shape))
    return subprocess.Popen(
        local.command('sweep', f'--config={config}',
                      f'--root={self.folder / name}', '--roles=train',
                      '--noreport', *flags),
        env={**os.environ, **env}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)

  def wait(self, sweep: subprocess.Popen) -> str:
    """Waits for a sweep; returns why it has no result, or ''."""
    try:
      _, errors = sweep.communicate(timeout=self.left())
    except subprocess.TimeoutExpired:
      # A sweep stops its workers when it is asked to end.
      sweep.terminate()
      sweep.communicate()
      return 'not measured: the time was up'
    if sweep.returncode:
      return f'not measured: {(errors.strip().splitlines() or [""])[-1][:200]}'
    return ''

  def readings(self, name: str) -> float:
    """Returns the seconds that RankMe and losses of a sweep's runs took."""
    return sum(json.loads(path.read_text())['seconds'] for path in
               (self.folder / name).glob('*/records/monitor-*.json'))

  def rows(self, name: str, run: str = '*') -> list[dict[str, Any]]:
    """Returns the curve of a run of a sweep; '*': of any that is trained."""
    for path in sorted((self.folder / name).glob(f'{run}/metrics.jsonl')):
      lines = [json.loads(line) for line in path.read_text().splitlines()]
      # The untrained baseline has rows too, but no loss.
      if any('loss' in line for line in lines):
        return [{**line, 'run': path.parent.name} for line in lines]
    return []


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from launch import devices
  there = devices.find()
  if there.kind == 'cpu' and not quick:
    yield timing.absent('one GPU', 'a GPU (--quick tries it on a CPU)')
    return
  with tempfile.TemporaryDirectory() as folder:
    sweeps = Sweeps(pathlib.Path(folder), quick)
    # The CPU's side of the comparison runs beside the packed runs.
    other = sweeps.start('cpu', 1, '--devices=cpu')
    for count in timing.sized(quick, (2,), (64, 1, 16)):
      what = f"{sweeps.shape['size']}, {count} packed runs"
      if only in what:
        yield packed(sweeps, what, count)
    if only in 'loss at step 10 against the CPU':
      yield from compared(sweeps, other, timing.sized(quick, 2, 1))
    other.terminate()
    other.communicate()
    if only in 'whole sweep of configs/minute.py':
      yield whole(sweeps)


def packed(sweeps: Sweeps, what: str, count: int) -> timing.Row:
  """Returns the Row of runs that train in one program: clips/s of all."""
  error = sweeps.wait(sweeps.start(f'packed{count}', count,
                                   f'--pack={count}'))
  speeds = [row for row in sweeps.rows(f'packed{count}')
            if 'clips_per_second' in row]
  if error or not speeds:
    return timing.alone(what, float('nan'), 'clips/s', note=error)
  # The first row has the compilation in it.
  later = speeds[len(speeds) // 2:]
  speed = statistics.median(row['clips_per_second'] for row in later)
  # Of the ten steps of a row.
  seconds = 10 * sweeps.shape['batch'] * count / speed
  waiting = statistics.median(row.get('waiting', 0.) for row in later)
  readings = sweeps.readings(f'packed{count}')
  # All runs train together, and are read one after the other.
  whole = readings + seconds * sweeps.shape['steps'] / 10
  note = (f'of all runs; waiting for input {waiting / seconds:.1%} of the '
          f'steps, readings {readings / whole:.1%} of the time; official '
          f'trainer, one run on an H200: {OFFICIAL}')
  return timing.alone(what, speed, 'clips/s', note=note)


def compared(sweeps: Sweeps, other: subprocess.Popen,
             count: int) -> Iterator[timing.Row]:
  """Yields how far the losses of one run are from the CPU's."""
  # Until the CPU's run has a row, has ended, or the time is up.
  while not sweeps.rows('cpu') and sweeps.left() > 1:
    if other.poll() is not None:
      break
    time.sleep(.2)
  run = (sweeps.rows('cpu') or [{'run': ''}])[0]['run']
  sides = [{row['step']: row['loss'] for row in sweeps.rows(name, run)
            if 'loss' in row} for name in (f'packed{count}', 'cpu')]
  # The first alone: rounding errors grow from step to step.
  for step in sorted(sides[0].keys() & sides[1].keys())[:1]:
    ours, theirs = (side[step] for side in sides)
    yield timing.alone(f'loss at step {step} against the CPU',
                       abs(ours - theirs) / theirs, '',
                       note='relative difference; `bench parity` has '
                       'embeddings and RankMe')


def whole(sweeps: Sweeps) -> timing.Row:
  """Returns the Row of a whole sweep, sounds and report included."""
  what = 'whole sweep of configs/minute.py'
  began = time.monotonic()
  small = []
  if sweeps.quick:
    small = ['--config.train.steps=3', '--config.opt.warmup=1',
             '--config.data.world.hours=.06', '--config.monitor.clips=40',
             '--config.monitor.batch=20', '--config.monitor.valid_clips=16',
             '--config.data.hours=.01', '--config.data.valid_fraction=.3']
  sweep = subprocess.Popen(
      local.command('sweep', '--config=minute',
                    f"--root={sweeps.folder / 'minute'}", *small),
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  error = sweeps.wait(sweep)
  seconds = time.monotonic() - began
  if error:
    seconds = float('nan')
  return timing.alone(what, seconds, 's', note=error)
