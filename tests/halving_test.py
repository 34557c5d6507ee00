"""Runs that are stopped early: the rule, its decisions live, and restarts."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from audiorank import files
from audiorank import records
from audiorank import train
from audiorank.analysis import early
from audiorank.analysis import halving as rule
from audiorank.analysis import study
from launch import halving
from launch import overview
from launch import run_queue
from launch import work
from tests import processes
from tests import tiny
from tests import worker_test

STUDY = pathlib.Path(__file__).parents[1] / 'notebooks/results/small_study'
RUNS, STEPS = 14, 100


def simulated(rng, n, by_rank, noise=.005):
  """Runs with a score that follows size, and RankMe by `by_rank`."""
  size, rank = rng.normal(size=n), rng.normal(size=n)
  score = .5 + .03 * size + by_rank * rank + noise * rng.normal(size=n)
  return pd.DataFrame({
      'run_id': [f'r{i:02}' for i in range(n)], 'params': 1e5 * np.exp(size),
      'rank': 20 * np.exp(.3 * rank), 'valid_loss': np.exp(rng.normal(size=n)),
      'knn': rng.normal(size=n), 'flops': np.exp(size), 'score': score})


def test_the_predictor_is_the_one_that_predicts_best():
  rng = np.random.default_rng(0)
  known, alive = simulated(rng, 12, .05), simulated(rng, 20, .05)
  predicted = rule.predict(known, alive.drop(columns='score'))
  assert predicted.by == 'size and RankMe'
  assert predicted.errors['size and RankMe'] < .5 * predicted.errors['size']
  assert np.abs(predicted.score_N - alive['score']).max() < .03
  # Where nothing else says anything, size decides.
  known, alive = simulated(rng, 30, 0.), simulated(rng, 20, 0.)
  known[['rank', 'valid_loss', 'knn']] = 1. + rng.random((30, 3))
  alive[['rank', 'valid_loss', 'knn']] = 1. + rng.random((20, 3))
  named = rule.predict(known, alive)
  assert named.by.startswith('size')
  assert named.errors['size'] <= 1.05 * named.errors[named.by]
  flat = rule.predict(known[['score', 'params']], alive[['params']])
  assert flat.by == 'size'
  same = rule.predict(known.assign(params=1.)[['score', 'params']],
                      alive.assign(params=1.)[['params']])
  assert same.by == 'the mean of the pilots'
  assert same.score_N == pytest.approx(known['score'].mean())
  # What one run lacks is no predictor.
  known.loc[0, 'rank'] = np.nan
  assert not any('RankMe' in name for name in rule.predictors(known))


def test_intervals_hold_the_final_score():
  rng = np.random.default_rng(1)
  inside = []
  for _ in range(60):
    known, alive = simulated(rng, 8, .02), simulated(rng, 4, .02)
    one = rule.predict(known, alive)
    inside += list((one.low_N <= alive['score'])
                   & (alive['score'] <= one.high_N))
  # The choice of the predictor by few pilots costs some coverage.
  assert .86 <= np.mean(inside) <= .98


def test_pilots_are_spread_over_the_cost_and_the_half_goes_on():
  work_of = {f'r{i}': float(i) for i in range(40)}
  assert rule.pilots(work_of) == ['r4', 'r12', 'r20', 'r28', 'r36']
  assert len(rule.pilots({f'r{i}': 1. for i in range(120)})) == 12
  one = rule.Prediction('', 0., {}, np.array([1., 2., 2., 0.]), np.zeros(4),
                        np.zeros(4), np.array([0., 1., 2., 9.]))
  assert list(rule.keeps(one)) == [False, True, True, False]
  assert list(rule.keeps(one, .25)) == [False, False, True, False]


def recorded(shares=rule.SHARES):
  """The runs of the shipped study, and what was measured at the rungs."""
  rows = study.read(records.load(STUDY))
  rungs = []
  for share in shares:
    rank, loss = (early.at_rung(rows.trained, rows.history, share, name)
                  for name in ('rank', 'valid_loss'))
    rungs.append((rank[1], pd.DataFrame({'rank': rank[0],
                                         'valid_loss': loss[0]})))
  return rows.trained, rungs


def test_half_of_the_compute_of_the_recorded_study_is_saved():
  runs, rungs = recorded()
  out = rule.replay(runs, rungs)
  # The standard deviation of the study's seeds is .012.
  assert out.saved >= .5 and out.regret <= .012 < out.random
  assert 5 < out.finalists < 20


@pytest.mark.slow
def test_the_recorded_study_whichever_runs_are_pilots():
  runs, rungs = recorded()
  rng = np.random.default_rng(0)
  several = []
  for _ in range(200):
    # Ids decide among runs of equal cost.
    ids = [f'{i:06}' for i in rng.permutation(len(runs))]
    several.append(rule.replay(runs.assign(run_id=ids), rungs))
  assert np.mean([one.saved for one in several]) > .48
  assert np.mean([one.regret for one in several]) < .004
  assert np.mean([one.regret <= .012 for one in several]) > .85


# --- Live, with a training that only writes records ---


class Killed(BaseException):
  """As kill -9: nothing in the worker may catch it."""


class Fake:
  """A training and scoring that write the records of a known truth.

  Args:
    configs: of the sweep.
    kill_at: number of the write at which the process dies; 0 for never.
  """

  def __init__(self, configs, kill_at=0):
    rng = np.random.default_rng(3)
    self.rank = {records.run_id(configs[k]): 10 * 1.2 ** i
                 for i, k in enumerate(rng.permutation(len(configs)))}
    self.left = kill_at
    self.trained = []  # (run, step) that were trained here.

  def tick(self):
    self.left -= 1
    if not self.left:
      raise Killed

  def train(self, runs, stop, status, scored):
    del status, scored
    for run in runs:
      (run.workdir / 'checkpoints').mkdir(exist_ok=True)
      value = self.rank[run.workdir.name]
      records.write(run.workdir, 'run', 0, {
          'parameters': {'encoder': 1000, 'decoder': 1}, 'hours': 1.,
          'flops_per_clip': {'total': 1., 'encoder': 1.}})
      for step in (0, 10, 25, 50, STEPS):
        if not records.path(run.workdir, 'monitor', step).exists():
          self.trained.append((run.workdir.name, step))
          self.tick()
          rank = {'value': value, 'low': value, 'high': value,
                  'value_inf': None, 'siblings': {}}
          records.write(run.workdir, 'monitor', step, {
              'n': 9, 'valid_loss': 1., 'rank': rank, 'rank_center': rank})
        self.tick()
        if step < STEPS and stop(step):
          raise train.Preempted(f'saved at step {step}', {})
      files.write_json(run.workdir / 'TRAINED', {})
    return runs

  def score(self, run, asked, status):
    del asked, status
    self.tick()
    records.write(run.workdir, 'hear.task', STEPS, {
        'task': 'task', 'metric': 'accuracy', 'embedding_type': 'scene',
        'task_sha256': '', 'settings': {}, 'result': {
            'score': .1 * np.log(self.rank[run.workdir.name]),
            'protocol': 'hear'}})
    self.tick()
    files.write_json(run.workdir / 'DONE', {})
    return True


def configs_of():
  out = []
  for i in range(RUNS):
    c = tiny.config('', **{'opt.lr': 1e-4 * (i + 1), 'train.steps': STEPS,
                           'monitor.first_eval': 10, 'monitor.num_evals': 4})
    # At 0, 10, 25, 50 and the end.
    c.monitor.eval_every = 25
    out.append(c)
  return out


@pytest.fixture
def begun(tmp_path, monkeypatch):
  """(root, configs, how to let a worker do what it can) of a sweep."""
  configs = configs_of()
  board = worker_test.sweep(tmp_path, configs)
  halving.begin(tmp_path, board.entries, (.1, .25))

  def worker(kill_at=0):
    fake = Fake(configs, kill_at)
    monkeypatch.setattr(work, 'train', fake.train)
    monkeypatch.setattr(work, 'score', fake.score)
    assert worker_test.done(run_queue.Board(tmp_path)) == 0
    return fake

  return tmp_path, configs, worker


def counted(root):
  states = [records.state(f) for f in records.run_folders(root)]
  return {name: states.count(name) for name in set(states)}


def outcome(root):
  """Returns (decisions, {run: state}) of a sweep."""
  return halving.read(root), {f.name: records.state(f)
                              for f in records.run_folders(root)}


def test_the_better_half_goes_on_at_each_rung(begun):
  root, _, worker = begun
  fake = worker()
  plan, states = outcome(root)
  # Five pilots; of nine others five and then three go on.
  assert counted(root) == {'done': 8, 'halved': 6}
  first, second = plan['rungs']
  assert first['by'] == second['by'] == 'RankMe'
  alive = set(plan['runs'])
  for rung, kept in ((first, 5), (second, 3)):
    order = sorted(alive, key=lambda run: -fake.rank[run])
    assert set(rung['kept']) == set(order[:kept])
    assert set(rung['stopped']) == set(order[kept:])
    alive = set(rung['kept'])
  assert all(states[run] == 'done' for run in alive)
  # Stopped runs say what was predicted, and were not trained beyond it.
  run = next(iter(second['stopped']))
  about = files.read_json(root / run / 'HALVED')
  assert about['predicted'] == pytest.approx(.1 * np.log(fake.rank[run]))
  assert about['low'] <= about['predicted'] <= about['high']
  assert (about['step'], about['share'], about['by']) == (25, .25, 'RankMe')
  assert max(step for name, step in fake.trained if name == run) == 25
  line, = [x for x in overview.status(root).splitlines() if run in x]
  assert 'halved' in line and f'25/{STEPS}' in line and 'by RankMe' in line
  at = run_queue.Board(root).progress()
  assert at.share == 1. and at.done == 8


@pytest.mark.parametrize('kill_at', [33, *(pytest.param(
    at, marks=pytest.mark.slow) for at in (3, 17, 50, 77, 100))])
def test_killed_again_and_again_it_decides_the_same(begun, kill_at):
  root, configs, worker = begun
  worker()
  expected = outcome(root)
  # The same sweep anew; workers die after so many writes each.
  for folder in records.run_folders(root):
    files.remove(folder)
  (root / halving.FILE).unlink()
  board = worker_test.sweep(root, configs)
  halving.begin(root, board.entries, (.1, .25))
  for _ in range(30):
    try:
      worker(kill_at)
      break
    except Killed:
      pass
  else:
    worker()
  assert outcome(root) == expected


def test_a_death_between_a_decision_and_its_marks_is_made_good(begun,
                                                               monkeypatch):
  root, _, worker = begun
  apply = halving.apply

  def dies(board, plan):
    if plan['rungs']:
      raise Killed
    return apply(board, plan)

  monkeypatch.setattr(halving, 'apply', dies)
  with pytest.raises(Killed):
    worker()
  assert len(halving.read(root)['rungs']) == 1
  assert counted(root) == {'done': 5, 'paused': 9}
  monkeypatch.setattr(halving, 'apply', apply)
  worker()
  assert counted(root) == {'done': 8, 'halved': 6}


def test_two_workers_that_decide_at_once_agree(begun, monkeypatch):
  root, _, worker = begun
  decide = halving.decide

  def slow(board, plan, paused):
    # Another machine decides and writes while this one computes.
    rung = decide(board, plan, paused)
    monkeypatch.setattr(halving, 'decide', decide)
    assert halving.advance(run_queue.Board(root))
    return {**rung, 'by': 'the slower one'}

  monkeypatch.setattr(halving, 'decide', slow)
  worker()
  plan, _ = outcome(root)
  assert [rung['by'] for rung in plan['rungs']] == ['RankMe', 'RankMe']
  assert counted(root) == {'done': 8, 'halved': 6}


def test_halving_that_ends_during_a_decision_stops_no_run(begun, monkeypatch):
  root, _, worker = begun
  decide = halving.decide

  def ended(board, plan, paused):
    halving.end(root, board.entries)
    return decide(board, plan, paused)

  monkeypatch.setattr(halving, 'decide', ended)
  worker()
  assert not (root / halving.FILE).exists()
  assert counted(root) == {'done': RUNS}


def test_without_halving_all_go_on_and_at_later_rungs_some(begun):
  root, _, worker = begun
  worker()
  board = run_queue.Board(root)
  # The first rung stays decided, the second is now half of training.
  plan = halving.begin(root, board.entries, (.1, .5))
  assert [rung['share'] for rung in plan['rungs']] == [.1]
  assert counted(root) == {'done': 8, 'halved': 4, 'started': 2}
  worker()
  # Three are done already; of the two that go on, half.
  assert counted(root) == {'done': 9, 'halved': 5}
  halving.end(root, board.entries)
  assert not (root / halving.FILE).exists()
  worker()
  assert counted(root) == {'done': RUNS}


def test_with_no_predictor_no_run_is_stopped(begun, monkeypatch):
  root, _, worker = begun
  monkeypatch.setattr(Fake, 'score', lambda self, run, *_: files.write_json(
      run.workdir / 'DONE', {}) or True)
  worker()
  assert counted(root) == {'done': RUNS}


def test_flags_that_make_no_rungs_get_one_line():
  assert halving.shares([]) == () and halving.shares(['auto']) == rule.SHARES
  assert halving.shares(['.2', '.4']) == (.2, .4)
  for bad in (['half'], ['.4', '.2'], ['0'], ['.1', '1'], ['.1', 'nan']):
    with pytest.raises(ValueError, match='expected auto, or shares'):
      halving.shares(bad)
  with pytest.raises(ValueError, match='11 trained runs: expected at least 12'):
    halving.check(11)


def test_a_damaged_plan_gets_one_line(tmp_path):
  for text in ('{', '[]', '{"runs": 3}'):
    (tmp_path / halving.FILE).write_text(text)
    with pytest.raises(ValueError, match=halving.FILE):
      halving.read(tmp_path)


POINTS = '''"""Twelve points."""
from tests import tiny

def get_config(point='1'):
  return tiny.config('', **{
      'opt.lr': 1e-4 * int(point), 'train.steps': 12,
      'monitor.first_eval': 3, 'monitor.num_evals': 4, 'eval.batch': 12,
      'eval.protocol': 'logistic', 'eval.task_names': ('timbre-v1-full',)})

def points():
  return [str(i + 1) for i in range(12)]
'''


@pytest.mark.slow
def test_a_sweep_halves_its_runs_with_two_workers(server, corpus, tasks,
                                                  tmp_path):
  (tmp_path / 'twelve.py').write_text(POINTS)
  root = tmp_path / 'runs'
  arguments = [f'--config={tmp_path}/twelve.py', f'--root={root}',
               f'--config.data.root={corpus}', f'--config.eval.tasks={tasks}',
               '--workers=2']
  first = server.run(tmp_path, 'sweep', *arguments, '--halving=.25,.5')
  assert first.returncode == 0, first.stderr
  plan = halving.read(root)
  assert [rung['share'] for rung in plan['rungs']] == [.25, .5]
  # The untrained network, five pilots, and two of seven others.
  assert counted(root) == {'done': 8, 'halved': 5}
  assert 'stopped early' in (root / 'report.html').read_text()
  stopped = [f for f in records.run_folders(root)
             if records.state(f) == 'halved']
  steps = {f.name: files.read_json(f / 'HALVED')['step'] for f in stopped}
  again = server.run(tmp_path, 'sweep', *arguments, '--noreport')
  assert again.returncode == 0, again.stderr
  assert counted(root) == {'done': 13}
  for folder in stopped:
    # It went on from where it was stopped.
    rows = [row['step'] for row in records.metric_rows(folder)
            if 'rank' not in row]
    assert rows == sorted(rows) and rows[-1] == 12
    assert steps[folder.name] in (3, 6)
  assert processes.final(stopped[0])
