"""Live successive halving: `launch.sweep --halving`.

halving.json in the root says which runs take part, which are pilots, and what
was decided at each rung. A worker trains a run to its next rung and marks it
as PAUSED. Once all runs are there and the pilots are scored, a worker without
work decides, by audiorank/analysis/halving.py, from the records alone: any
worker on any machine decides the same, and the first to write it counts. Runs
that are stopped are marked as HALVED.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
import time
from typing import Any
from typing import TYPE_CHECKING

from audiorank import files
from audiorank import records
from audiorank.records import lock as lock_lib
from launch import run_queue

if TYPE_CHECKING:
  import pandas as pd

FILE = 'halving.json'
ENDED = ('done', 'failed')
Plan = dict[str, Any]


def shares(texts: Sequence[str]) -> tuple[float, ...]:
  """Returns the rungs of the flag --halving, () for none.

  Raises:
    ValueError: no shares of training in ascending order.
  """
  from audiorank.analysis import halving
  if not texts:
    return ()
  if list(texts) == ['auto']:
    return halving.SHARES
  try:
    out = tuple(map(float, texts))
  except ValueError:
    out = ()
  if not out or list(out) != sorted(set(out)) or not 0 < out[0] <= out[-1] < 1:
    raise ValueError(f'--halving={",".join(texts)}: expected auto, or shares '
                     'of training between 0 and 1 in ascending order, such as '
                     '.1,.25')
  return out


def check(count: int) -> None:
  """Raises ValueError if a sweep has too few trained runs for halving."""
  from audiorank.analysis import halving
  if count < halving.LEAST:
    raise ValueError(f'--halving: {count} trained runs: expected at least '
                     f'{halving.LEAST}, of which {halving.PILOTS} are trained '
                     'to the end to learn what predicts the score')


def read(root: pathlib.Path) -> Plan | None:
  """Returns halving.json of a sweep, or None.

  Raises:
    ValueError: it is damaged; names the file.
  """
  path = root / FILE
  try:
    plan = files.read_json(path)
  except FileNotFoundError:
    return None
  if not isinstance(plan, dict) or not all(
      isinstance(plan.get(name), list)
      for name in ('shares', 'pilots', 'runs', 'rungs')):
    raise ValueError(f'{path}: damaged: remove it and run the same '
                     'launch.sweep --halving again')
  return plan


def begin(root: pathlib.Path, entries: Mapping[str, run_queue.Entry],
          rungs: Sequence[float]) -> Plan:
  """Starts halving of some runs, or goes on with it; returns its plan.

  Rungs that were decided stay decided as far as the shares are the same; runs
  that were stopped at others go on.

  Args:
    root: the sweep's folder.
    entries: {run_id: entry} of its runs.
    rungs: shares of training.
  """
  from audiorank.analysis import halving
  work = {run_id: one.work for run_id, one in entries.items() if one.steps}

  def change(old: Plan | None) -> Plan:
    decided, first = [], halving.pilots(work)
    if old is not None:
      # Pilots stay pilots: they may be trained to the end already.
      first = sorted({*old['pilots']} & {*work}) or first
      for mine, theirs in zip(rungs, old['rungs']):
        if mine != theirs['share']:
          break
        decided.append(theirs)
    return {'shares': list(rungs), 'pilots': first, 'rungs': decided,
            'runs': sorted({*work} - {*first})}

  plan = files.update_json(root / FILE, change)
  reopen(root, plan['runs'], stopped(plan))
  return plan


def end(root: pathlib.Path, run_ids: Collection[str]) -> None:
  """Ends halving in a sweep: some runs that were stopped can go on."""
  if (root / FILE).exists():
    (root / FILE).unlink()
    reopen(root, run_ids, {})


def reopen(root: pathlib.Path, run_ids: Collection[str],
           keep: Mapping[str, Any]) -> None:
  """Lets runs go on, except those that stay stopped."""
  for run_id in run_ids:
    # One listing instead of a question a file.
    there = files.names(root / run_id)
    for name in {'HALVED', 'PAUSED'} & there:
      if name == 'PAUSED' or run_id not in keep:
        (root / run_id / name).unlink(missing_ok=True)


def stopped(plan: Plan) -> dict[str, dict[str, Any]]:
  """Returns {run_id: about} of the runs that were stopped at any rung."""
  return {run_id: {**about, 'share': rung['share'], 'by': rung['by']}
          for rung in plan['rungs'] for run_id, about in
          rung['stopped'].items()}


def pause_step(plan: Plan | None, run_id: str, config: Any) -> int | None:
  """Returns the step at which a run waits for a decision, or None.

  It is the evaluation nearest to the next rung: RankMe is known there, and no
  field of the config changes.
  """
  from audiorank import evals
  from audiorank.analysis import early
  if plan is None or run_id not in plan['runs'] or (
      len(plan['rungs']) == len(plan['shares'])):
    return None
  wanted = plan['shares'][len(plan['rungs'])] * config.train.steps
  inside = [step for step in evals.eval_steps(config)
            if 0 < step < config.train.steps]
  # Evaluations are spaced by factors, so near is near in the logarithm.
  away = {step: abs(math.log(step / wanted)) for step in inside}
  if not away or min(away.values()) > math.log(early.NEAR):
    return None
  return min(away, key=lambda step: away[step])


def reached(workdir: pathlib.Path, pause: int | None, step: int) -> bool:
  """Returns whether a run has to stop before a step is taken."""
  if pause is None or step < pause:
    return False
  # At the rung itself not before its evaluation is written.
  return step > pause or records.path(workdir, 'monitor', pause).exists()


def mark_paused(runs: Sequence[run_queue.Claim], plan: Plan,
                pauses: Sequence[int | None]) -> None:
  """Marks the runs that are at their rung; the caller has their locks.

  Runs that were packed with them and have no rung are claimed again.
  """
  share = plan['shares'][len(plan['rungs'])]
  for run, pause in zip(runs, pauses):
    if pause is not None and records.state(run.workdir) == 'started':
      files.write_json(run.workdir / 'PAUSED', {'step': pause, 'share': share})


def advance(board: run_queue.Board) -> bool:
  """Decides a rung if all runs are there; returns whether any run can go on.

  Called by a worker that finds no run to claim.

  Raises:
    ValueError: halving.json is damaged.
  """
  plan = read(board.root)
  if plan is None:
    return False
  # A worker may have died between a decision and its marks.
  if apply(board, plan):
    return True
  if len(plan['rungs']) == len(plan['shares']):
    return False
  out = stopped(plan)
  alive = [run_id for run_id in plan['runs'] if run_id not in out]
  if any(state_of(board, run_id) not in ENDED for run_id in plan['pilots']):
    return False
  if any(state_of(board, run_id) not in ('paused', *ENDED)
         for run_id in alive):
    return False
  count = len(plan['rungs'])
  rung = decide(board, plan, [run_id for run_id in alive
                              if state_of(board, run_id) == 'paused'])

  def change(now: Plan | None) -> Plan:
    # The user has ended halving: no run may be stopped any more.
    if now is None:
      raise FileNotFoundError
    # Another worker may have decided this rung.
    if len(now['rungs']) == count:
      now['rungs'].append(rung)
    return now

  try:
    plan = files.update_json(board.root / FILE, change)
  except FileNotFoundError:
    return True  # All that waited can go on.
  apply(board, plan)
  return True


def state_of(board: run_queue.Board, run_id: str) -> str:
  """Returns the state of a run; those of other commands may not be on the
  board."""
  if run_id in board.states:
    return board.states[run_id]
  return records.state(board.folder(run_id))


def apply(board: run_queue.Board, plan: Plan) -> bool:
  """Lets paused runs go on, or stops them, as decided; returns whether it has
  changed any."""
  out, changed = stopped(plan), False
  decided = {rung['share'] for rung in plan['rungs']}
  for run_id in plan['runs']:
    if state_of(board, run_id) != 'paused':
      continue
    folder = board.folder(run_id)
    try:
      paused = files.read_json(folder / 'PAUSED')
      share, step = paused['share'], paused['step']
    # Another worker was faster, or it was written by hand.
    except (OSError, ValueError, KeyError, TypeError):
      continue
    # A run that waits at a later rung is not decided yet.
    if share not in decided:
      continue
    if run_id in out:
      files.write_json(folder / 'HALVED', {**out[run_id], 'step': step})
    (folder / 'PAUSED').unlink(missing_ok=True)
    changed = True
  board.look()
  return changed


def decide(board: run_queue.Board, plan: Plan,
           paused: Sequence[str]) -> dict[str, Any]:
  """Returns the decision at the next rung, as it stands in halving.json.

  Args:
    board: of the sweep.
    plan: see FILE.
    paused: runs that wait at the rung.
  """
  from audiorank.analysis import halving
  share = plan['shares'][len(plan['rungs'])]
  known = measured(board, plan, plan['pilots'])
  known = known[known['score'].notna()]
  rung: dict[str, Any] = {'share': share, 'by': '', 'errors': {},
                          'kept': sorted(paused), 'stopped': {}}
  if not paused or len(known) < 3:
    # Nothing predicts a score: then no run is stopped.
    return rung
  alive = measured(board, plan, sorted(paused))
  predicted = halving.predict(known, alive)
  keep_N = halving.keeps(predicted)
  about = {run_id: {'predicted': float(score), 'low': float(low),
                    'high': float(high)} for run_id, score, low, high in
           zip(alive['run_id'], predicted.score_N, predicted.low_N,
               predicted.high_N)}
  return {**rung, 'by': predicted.by, 'errors': predicted.errors,
          'kept': [run for run, keep in zip(alive['run_id'], keep_N) if keep],
          'stopped': {run: about[run] for run, keep in
                      zip(alive['run_id'], keep_N) if not keep}}


def measured(board: run_queue.Board, plan: Plan,
             run_ids: Sequence[str]) -> 'pd.DataFrame':
  """Returns a row a run: run_id, params, rank, valid_loss, knn, score."""
  import pandas as pd

  from audiorank.records import score_table
  from audiorank.records import sweep
  rows = []
  for run_id in run_ids:
    folder = board.folder(run_id)
    one = sweep.read_run(folder)
    config = records.load_config(folder)
    # Pilots are read where they would have waited.
    at = pause_step({**plan, 'runs': [run_id]}, run_id, config)
    here = next((row for row in one.history if row['step'] == at), {})
    rows.append({
        'run_id': run_id, 'params': one.row['params'],
        **{name: here.get(name) for name in ('rank', 'valid_loss', 'knn')},
        'score': score_table.means(score_table.newest(one.scores),
                                   {})['score']})
  # As numbers: a column of None alone would be one of objects.
  table = pd.DataFrame(rows)
  numbers = [name for name in table if name != 'run_id']
  return table.astype(dict.fromkeys(numbers, float))


def wait(board: run_queue.Board) -> bool:
  """Waits if others work on runs on which a decision depends; returns whether
  it has waited."""
  plan = read(board.root)
  if plan is None or len(plan['rungs']) == len(plan['shares']):
    return False
  out = stopped(plan)
  busy = [run_id for run_id in (*plan['runs'], *plan['pilots'])
          if run_id not in out
          and state_of(board, run_id) in ('started', 'trained')]
  if not any(lock_lib.alive(board.folder(run_id)) for run_id in busy):
    return False
  time.sleep(run_queue.WAIT)
  return True
