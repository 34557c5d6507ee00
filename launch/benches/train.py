"""A training step compared with that of the official PyTorch trainer.

On a GPU: the sizes of the paper in bfloat16, and small runs packed in one
program, compared with the official trainer under autocast, as published, with
torch's fused attention, and compiled. MFU is by our own count of FLOPs. Each
has its own process; several compile at the same time, but only one is timed at
a time. It takes at most four minutes. On a CPU: float32, one core.

Both sides have the same sizes, batch and crops, and each its own front end,
masks, backward pass and AdamW.
"""

from collections.abc import Iterator
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

from launch import devices
from launch.benches import steps
from launch.benches import timing
from launch.engines import local

DEVICES = devices.find()
ON_GPU = DEVICES.kind == 'gpu'
PINNED = not ON_GPU
# The setting of a sweep's workers on a CPU; both sides profit from it.
ENV = {'GLIBC_TUNABLES': local.TUNABLES}
if ON_GPU:
  # This process must not open the device, because its children need all of
  # the memory.
  ENV = {'JAX_PLATFORMS': 'cpu'}
SECONDS = 225.  # For everything, on a GPU.
JOB_SECONDS = 120.  # For one process.
WORKERS = 5  # Processes that compile at once.
COMPILING = 30.  # Seconds wanted, for one program.
# On a CPU. Case: ratio to reach.
CASES = {
    steps.Case('en128-12', (128, 4, 4), 16, dtype='float32'): .95,
    steps.Case('en128-12', (512, 8, 16), 4, dtype='float32'): .9,
    steps.Case('en256-6', (256, 4, 4), 16, dtype='float32'): .95}
SMALL = dict(decoder=(64, 2, 2), batch=64, seconds=2.07)
# On a GPU. Case, MFU to reach in per cent, then (rival's side, ratio of clips
# a second to reach) for each rival.
GPU_CASES = (
    (steps.Case('en128-12'), 35., {'': 4., 'compiled': None}),
    (steps.Case('en768-12'), 45., {'': 4., 'compiled': None}),
    (steps.Case('en64-4', **SMALL, runs=64), None, {'': 20.}),
    (steps.Case('en1536-24', batch=128), 50., {}),
    (steps.Case('en384-12'), 30., {'sdpa': None}),
    (steps.Case('en128-12', unroll=1), None, {}),
    (steps.Case('en64-4', **SMALL), None, {}),
    (steps.Case('en128-12', dtype='float32'), None, {}))
TOY = dict(decoder=(32, 1, 2), batch=2, seconds=1.03)
TOY_CASES = ((steps.Case('en64-2', **TOY), 1., {'': 1., 'compiled': None}),
             (steps.Case('en64-2', **TOY, runs=2), None, {'': 1.}))


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  if DEVICES.pretended:  # The same on a CPU, for tests.
    yield from card(TOY_CASES, only, window=.02)
    return
  if ON_GPU:
    yield from card(timing.sized(quick, GPU_CASES[:2], GPU_CASES), only)
    return
  for case, goal in CASES.items():
    what = f'train step, {case.name}'
    if only in what:
      yield on_cpu(what, case, goal, timing.sized(quick, 2, 5))


def on_cpu(what: str, case: steps.Case, goal: float, turns: int
           ) -> timing.Row:
  """Returns the Row of a case, with both sides in turns in this process.

  Args:
    what: name of the row.
    case: what to time.
    goal: ratio to reach.
    turns: number of turns.
  """
  import jax
  run, _ = steps.ours(case)
  mine = lambda: jax.block_until_ready(run())
  try:
    theirs = steps.rival(case)
    import torch
    # One core on both sides.
    torch.set_num_threads(1)
  except (ImportError, OSError):
    # Once untimed, for the first touches of memory.
    mine()
    began = time.process_time()
    mine()
    return timing.absent(what, 'dasheng')._replace(
        ours_value=time.process_time() - began, unit='s')
  return timing.turns(what, mine, theirs, turns, time.process_time, goal,
                      ('step', 'official trainer'),
                      'freed memory is kept on both sides')


def card(cases: tuple[Any, ...], only: str, seconds: float = SECONDS,
         window: float = steps.WINDOW) -> Iterator[timing.Row]:
  """Yields the Rows of a GPU, each as soon as it is known.

  Args:
    cases: like GPU_CASES.
    only: a part of the names of the cases to run.
    seconds: for all cases.
    window: see steps.measure.
  """
  goals, ratios, jobs, done = {}, [], {}, {}
  with tempfile.TemporaryDirectory() as folder:
    lock = str(pathlib.Path(folder) / 'lock')
    for case, mfu, rivals in cases:
      if only not in f'train step, {case.name}':
        continue
      job = _job(case, 'ours', '', lock, window)
      jobs[job.name], goals[job.name] = job, (case, mfu)
      for how, ratio in rivals.items():
        # The rival cannot pack runs, so it has one of the same size.
        job = _job(case._replace(runs=1), 'rival', how, lock, window)
        jobs[job.name] = job
        ratios.append((case, how, ratio, job.name))
    # The compiled rivals take longest and matter least.
    ordered = sorted(jobs.values(), key=lambda j: j.name.endswith('compiled'))
    for job, result in timing.children(ordered, WORKERS, seconds):
      done[job.name] = result
      if job.name in goals:
        yield from _own_rows(*goals[job.name], result)
      # A copy, as rows that are known are removed.
      for ratio in list(ratios):
        case, how, goal, rival = ratio
        mine = _name(case, 'ours', '')
        if mine in done and rival in done:
          ratios.remove(ratio)
          yield _ratio_row(case, how, goal, done[mine], done[rival])


def _name(case: steps.Case, side: str, how: str) -> str:
  return f'{case.name}, {side} {how}'.strip()


def _job(case: steps.Case, side: str, how: str, lock: str,
         window: float) -> timing.Job:
  """Returns the job that times one side of a case; see steps.main."""
  job = {'case': case._asdict(), 'side': side, 'how': how, 'lock': lock,
         'window': window}
  platform = 'cuda'
  if DEVICES.pretended:
    platform = 'cpu'
  # Several processes share the card, so none may allocate all of its memory.
  environment = {'JAX_PLATFORMS': platform,
                 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
                 'TF_CPP_MIN_LOG_LEVEL': '3'}
  return timing.Job(
      _name(case, side, how),
      [sys.executable, '-m', 'launch.benches.steps', json.dumps(job)],
      JOB_SECONDS, environment)


def _own_rows(case: steps.Case, goal: float | None,
              result: dict[str, Any]) -> Iterator[timing.Row]:
  """Yields the time of one of our steps, its MFU and its compilation."""
  from audiorank import flops
  from audiorank import train_state
  what = f'train step, {case.name}'
  if 'error' in result:
    yield timing.alone(what, float('nan'), 'ms', note=result['error'])
    return
  clips = case.batch * case.runs / result['seconds']
  rate = clips * train_state.flops(steps.config_of(case))['total']
  peak = flops.peak(result['device'])
  yield timing.alone(
      what, 1e3 * result['seconds'], 'ms', None,
      f"{clips:,.0f} clips/s, {rate / 1e12:.1f} TFLOP/s, "
      f"{result['memory']:.1f} GB, {result['device']}")
  if peak:
    yield timing.alone(f'MFU, {case.name}', 100 * rate / peak, '%', goal,
                       f'of {peak / 1e12:.0f} TFLOP/s in bfloat16')
  yield timing.alone(f'compiling, {case.name}', result['compiling'], 's', None,
                     f'cold, beside {WORKERS - 1} others; at most '
                     f'{COMPILING:g} wanted')


def _ratio_row(case: steps.Case, how: str, goal: float | None,
               mine: dict[str, Any], theirs: dict[str, Any]) -> timing.Row:
  """Returns our clips per second over a rival's."""
  what = f'clips per second, {case.name}'
  rival = 'official trainer, autocast'
  if how:
    rival += {'sdpa': ', SDPA', 'compiled': ', SDPA, compiled'}[how]
  for side, result in (('ours', mine), (rival, theirs)):
    if 'error' in result:
      return timing.alone(what, float('nan'), 'clips/s', goal,
                          f"{side}: {result['error']}", rival=rival)
  # Clips of all packed runs; the rival trains one.
  ours = case.batch * case.runs / mine['seconds']
  other = case.batch / theirs['seconds']
  return timing.Row(what, 'audiorank', rival, ours, other, 'clips/s',
                    ours / other, ours / other, ours / other, goal)
