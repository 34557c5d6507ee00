"""The sweep as its user runs it: whole, killed, repeated, misused."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pandas as pd
import pytest

from audiorank import checkpoint
from audiorank import findings
from audiorank import lease
from audiorank import records
from launch import pool
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]

POINTS = '''"""Two points.

  python -m launch.sweep --config=FILE --root=DIR
"""
from configs import base

def get_config(point='.5'):
  c = base.get_config('en32-2')
  c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
  c.model.target_frames = 104
  c.data.update({'crop_seconds': .5, 'valid_fraction': .2, 'threads': 1})
  c.mask.ratio = float(point)
  c.train.update({'steps': 40, 'batch': 8, 'log_every': 5})
  c.opt.update({'lr': 1e-3, 'warmup': 2})
  c.monitor.update({'clips': 48, 'crop_seconds': .5, 'readings': 4,
                    'first': 5, 'batch': 8, 'valid_clips': 8})
  c.checkpoint.update({'every': 10, 'keep': 1000})
  c.eval.update({'protocol': 'logistic', 'batch': 12})
  return c

def points():
  return ['.5', '.75']
'''


@pytest.fixture(scope='module')
def env(tmp_path_factory):
  """The environment of a command: CPU, one compilation cache for all."""
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
          'AUDIORANK_CACHE': str(tmp_path_factory.mktemp('compiled'))}


def command(name, *arguments):
  return [sys.executable, '-m', f'launch.{name}', *map(str, arguments)]


def run(env, name, *arguments, timeout=400):
  return subprocess.run(command(name, *arguments), cwd=ROOT, env=env,
                        capture_output=True, text=True, timeout=timeout)


def final(root):
  """Returns {run: (parameters, records without times)} of a sweep."""
  out = {}
  for workdir in records.run_folders(root):
    _, params = checkpoint.load(workdir)
    kept = [{k: v for k, v in r.items() if k not in records.TIMES}
            for r in records.read(workdir)]
    out[workdir.name] = [np.asarray(x) for x in jax.tree.leaves(params)], kept
  return out


def test_killed_anywhere_the_same_command_ends_in_the_same_numbers(
    env, corpus, tasks, tmp_path):
  (tmp_path / 'two.py').write_text(POINTS)
  arguments = [f'--config={tmp_path}/two.py', f'--config.data.root={corpus}',
               f'--config.eval.tasks={tasks}', '--workers=2']
  calm = run(env, 'sweep', *arguments, f'--root={tmp_path}/calm')
  assert calm.returncode == 0, calm.stderr
  assert calm.stdout.splitlines()[-1] == f'{tmp_path}/calm/report.html'
  root = tmp_path / 'killed'
  for victim in ('worker', 'launcher'):
    sweep = subprocess.Popen(
        command('sweep', *arguments, f'--root={root}'), cwd=ROOT, env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    training = wait_for(root, sweep)
    if victim == 'worker':
      os.kill(training['pid'], signal.SIGKILL)
      time.sleep(1)
      training = wait_for(root, sweep)
    sweep.kill()
    sweep.wait()
    end = time.monotonic() + 60
    while any(lease.alive(w) for w in records.run_folders(root)):
      assert time.monotonic() < end, 'a worker outlived its launcher'
      time.sleep(.2)
  again = run(env, 'sweep', *arguments, f'--root={root}')
  assert again.returncode == 0, again.stderr
  ours, theirs = final(tmp_path / 'calm'), final(root)
  assert set(ours) == set(theirs) and len(ours) == 3
  for name in ours:
    for a, b in zip(ours[name][0], theirs[name][0], strict=True):
      np.testing.assert_array_equal(a, b)
    assert ours[name][1] == theirs[name][1]
  once_more = run(env, 'sweep', *arguments, f'--root={root}')
  assert '3 runs, 3 done before' in once_more.stdout
  rebuilt = (root / 'report.html').read_text()
  (root / 'report.html').unlink()
  assert run(env, 'report', f'--workdir={root}').returncode == 0
  assert (root / 'report.html').read_text() == rebuilt
  scored_again_by_hand(env, tasks, records.run_folders(root)[0])


def scored_again_by_hand(env, tasks, workdir):
  """launch.evaluate gives the scores that the run recorded itself."""
  got = run(env, 'evaluate', f'--checkpoint={workdir}', f'--tasks={tasks}',
            '--protocol=logistic', '--batch=12', '--task=timbre-v1-full',
            f'--out={workdir}/again.json')
  assert got.returncode == 0, got.stderr
  (record,) = [r for r in records.read(workdir)
               if r['kind'] == 'hear.timbre-v1-full']
  again = records.read_json(workdir / 'again.json')
  assert again['timbre-v1-full']['scores'] == record['result']['scores']


def wait_for(root, sweep):
  """Waits until a worker trains; returns what its lease tells."""
  end = time.monotonic() + 120
  while time.monotonic() < end and sweep.poll() is None:
    for workdir in records.run_folders(root) if root.exists() else []:
      told = lease.read(workdir)
      if told.get('step', 0) >= 5 and lease.alive(workdir):
        return told
    time.sleep(.05)
  raise AssertionError('nothing was trained')


def test_shipped_quickstart_runs_end_to_end(env, tmp_path):
  small = {
      'data.world.hours': .12, 'data.world.train_clips': 16,
      'data.world.valid_clips': 8, 'data.world.test_clips': 16,
      'data.valid_fraction': .3, 'data.hours': .03, 'train.steps': 3,
      'opt.warmup': 1, 'monitor.clips': 80, 'monitor.batch': 20,
      'monitor.valid_clips': 16, 'monitor.readings': 2}
  done = run(env, 'sweep', '--config=configs/quickstart.py',
             f'--root={tmp_path}',
             *(f'--config.{k}={v}' for k, v in small.items()), timeout=580)
  assert done.returncode == 0, done.stderr[-2000:]
  # One volume for all points: 3 sizes x 2 masks, and 3 untrained networks.
  assert '9 runs, 0 done before' in done.stdout
  page = pathlib.Path(done.stdout.splitlines()[-1]).read_text()
  assert page.count('<img') >= 7 and 'untrained' in page
  assert 'http' not in page.replace('http-equiv', '')
  runs = records.load(tmp_path).runs
  assert set(runs['state']) == {'done'} and runs['untrained'].sum() == 3
  assert (runs['scored_tasks'] == 3).all() and runs['rank'].notna().all()


def test_a_damaged_record_is_one_line_that_names_the_run(tmp_path):
  from configs import base
  records.open_run(tmp_path / 'r', base.get_config('en128-12'))
  records.write_json(tmp_path / 'r/records/monitor-00000001.json',
                     {'kind': 'monitor', 'step': 1})
  with pytest.raises(ValueError, match='/r: config.json or a record is dama'):
    records.collect(tmp_path)


@pytest.mark.parametrize('arguments, text', [
    (['--config.data.rooot=x'], 'rooot'),
    (['--config.data.root=/none', '--config.eval.tasks={tasks}'], '/none'),
    (['--config.train.steps=many'], 'train.steps'),
    (['--config.data.root={empty}', '--config.eval.tasks={tasks}'],
     'was not made by prepare'),
    (['--config.data.root={corpus}', '--config.eval.tasks={empty}'],
     'no task here'),
    (['--config.data.root={corpus}'], 'eval.tasks is empty'),
    (['--config.data.root={corpus}', '--config.eval.tasks={tasks}',
      '--config.mesh.data=1', '--config.mesh.fsdp=3'], 'mesh.fsdp 3'),
    (['--config.data.root={corpus}', '--config.eval.tasks={tasks}',
      '--config.eval.names=none'], "no task 'none'"),
])
def test_bad_input_gets_one_line_and_leaves_nothing(
    env, corpus, tasks, tmp_path, arguments, text):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'two.py').write_text(POINTS)
  filled = [a.format(corpus=corpus, tasks=tasks, empty=tmp_path / 'empty')
            for a in arguments]
  got = run(env, 'sweep', f'--config={tmp_path}/two.py',
            f'--root={tmp_path}/root', *filled)
  assert got.returncode == 1
  said = [line for line in got.stderr.splitlines() if line.strip()]
  assert len(said) == 1 and said[0].startswith('error: ') and text in said[0]
  assert not list((tmp_path / 'root').glob('*/config.json'))


@pytest.mark.parametrize('more, text', [
    ('raise RuntimeError("no grid")', 'odd.py, line {last}: RuntimeError: no'),
    ('def points():\n  return []', 'odd.py: points() is empty'),
    ('def get_config(point="1"):\n  c = base.get_config("en32-2")\n'
     '  with c.ignore_type():\n    c.opt.lr = abs\n  return c',
     'odd.py:.5.opt.lr: <built-in function abs> is not')],
    ids=['raises', 'empty', 'a function'])
def test_an_odd_config_file_is_one_line_before_anything_is_made(
    env, tmp_path, more, text):
  (tmp_path / 'odd.py').write_text(f'{POINTS}\n{more}\n')
  last = len((tmp_path / 'odd.py').read_text().splitlines())
  got = run(env, 'sweep', f'--config={tmp_path}/odd.py',
            f'--root={tmp_path}/root')
  assert got.returncode == 1
  (said,) = got.stderr.splitlines()
  assert said.startswith('error: ') and text.format(last=last) in said
  assert not list((tmp_path / 'root').glob('*'))


@pytest.mark.parametrize('name', ['configs/base.py:en128-12', 'nowhere.py'])
def test_a_config_that_is_no_file_is_one_line(env, tmp_path, name):
  got = run(env, 'sweep', 'plan', f'--config={name}')
  assert got.returncode == 1
  (said,) = got.stderr.splitlines()
  assert said.startswith(f'error: --config={name}: no such .py file')


def test_a_lease_is_held_by_one_and_ends_with_its_holder(tmp_path):
  held = lease.Lease(tmp_path)
  held.tell('training', 3, 9, force=True)
  held.tell('scoring', force=True)
  assert lease.read(tmp_path)['step'] == 3 and lease.alive(tmp_path)
  with pytest.raises(lease.Held, match=f'process {os.getpid()}'):
    lease.Lease(tmp_path)
  held.release()
  assert not lease.alive(tmp_path)
  lease.Lease(tmp_path).release()


def test_a_second_worker_leaves_and_is_to_come_again(env, corpus, tmp_path):
  records.open_run(tmp_path, tiny.config(corpus))
  held = lease.Lease(tmp_path)
  got = run(env, 'train', f'--workdir={tmp_path}')
  assert got.returncode == pool.AGAIN
  (said,) = got.stderr.splitlines()
  assert f'process {os.getpid()} on' in said and lease.alive(tmp_path)
  assert not (tmp_path / 'checkpoints').exists()
  held.release()


def full(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_neither_a_worker_that_tells_nor_the_sweep(
    tmp_path, monkeypatch):
  held = lease.Lease(tmp_path)
  with monkeypatch.context() as m:
    m.setattr(os, 'write', full)
    held.tell('training', 3, 9, force=True)
  assert lease.read(tmp_path) == {} and lease.alive(tmp_path)
  held.tell('training', 4, 9, force=True)
  assert lease.read(tmp_path)['step'] == 4
  held.release()
  monkeypatch.setattr(records, 'write_json', full)
  failed = {}
  pool.give_up(tmp_path, pool.Job('r', 1.), 'no room', failed)
  assert failed == {'r': 'no room'}


def test_what_an_ended_worker_means(tmp_path):
  (tmp_path / 'r').mkdir()
  job = pool.Job('r', 1.)

  def settled(code, **tried):
    waiting, failed = [], {}
    pool.settle(tmp_path, job, code, waiting, {'r': pool.Tries(**tried)},
                failed)
    return waiting, failed

  assert settled(0) == ([], {})
  assert settled(pool.AGAIN) == ([job], {})
  assert settled(-9) == ([job], {})
  _, failed = settled(-9, deaths=pool.DEATHS - 1, reached=0.)
  assert failed['r'].startswith('killed')
  (tmp_path / 'r' / 'FAILED').unlink()
  (tmp_path / 'r' / 'log.txt').write_text('x\nerror: no such thing\n')
  assert settled(1) == ([], {'r': 'error: no such thing'})
  assert records.read_json(tmp_path / 'r' / 'FAILED')['error'] == (
      'error: no such thing')


def table(scores, untrained=.4, ranks=None):
  """Tables of a made-up sweep of one size."""
  n = len(scores)
  row = {'width': 32, 'depth': 2, 'heads': 1, 'crop_seconds': 1., 'seed': 0,
         'scored_tasks': 3, 'size': 'en32-2', 'lr': 1e-3, 'steps': 9,
         'batch': 8, 'params': 9., 'baseline': 't'}
  ranks = ranks if ranks is not None else np.geomspace(4, 20, n)
  runs = pd.DataFrame([
      {**row, 'run_id': str(i), 'name': f'run {i}', 'untrained': False,
       'score': s, 'rank': r, 'hours': float(i + 1), 'mask_ratio': .5,
       'valid_loss': 1. - s} for i, (s, r) in enumerate(zip(scores, ranks))]
      + [{**row, 'run_id': 't', 'name': 'untrained', 'untrained': True,
          'score': untrained, 'rank': 25., 'hours': 1., 'mask_ratio': .5,
          'valid_loss': 1.}])
  history = pd.DataFrame([
      {**r, 'step': s, 'rank': k} for _, r in runs.iterrows()
      for s, k in ((0, 25.), (5, 3.), (9, r['rank']))])
  return records.Tables(runs, history, pd.DataFrame())


def test_no_law_is_drawn_through_runs_that_do_not_beat_their_twin():
  found = findings.find(table([.3, .35, .39, .4, .41, .42, .43, .44]))
  assert found.fit is None and '4 of 8' in found.reason
  assert any('no law is drawn through them: run 0, run 1' in w
             for w in found.words)


def test_a_run_without_its_twin_enters_no_law_and_no_count():
  tables = table([.41, .42, .43, .44, .45, .46, .47, .48])
  tables.runs.loc[7, 'baseline'] = 'not scored yet'
  found = findings.find(tables)
  assert found.words[0].startswith('7 of 7 trained runs')
  assert found.fit.n == 7
  alone = tables._replace(runs=tables.runs[~tables.runs['untrained']])
  assert 'to be held against' in findings.find(alone).reason


def test_a_run_scored_on_fewer_tasks_is_not_compared():
  tables = table([.41, .42, .43, .44, .45, .46, .47, .9])
  tables.runs.loc[7, 'scored_tasks'] = 1
  found = findings.find(tables)
  assert len(found.runs) == 7 and found.runs['score'].max() < .5
  assert any(w.startswith('1 runs are not scored') for w in found.words)


def test_a_law_that_is_there_is_found_and_a_narrow_range_is_said():
  ranks = np.geomspace(5, 500, 24)
  noise = .002 * np.random.default_rng(0).standard_normal(24)
  found = findings.find(table(.9 - 1.2 * ranks ** -.8 + noise, untrained=.1,
                              ranks=ranks))
  assert found.fit.params['Q_inf'] == pytest.approx(.9, abs=.01)
  assert any(w.startswith('Q_inf = 0.9') for w in found.words)
  narrow = np.geomspace(10, 12, 24)
  found = findings.find(table(.5 + .001 * narrow + noise, untrained=.1,
                              ranks=narrow))
  text = ' '.join(found.words)
  assert 'too narrow' in text


def test_report_fits_anybodys_table(env, tmp_path):
  rank = np.geomspace(5, 500, 12)
  path = tmp_path / 't.csv'
  pd.DataFrame({'r': rank, 'q': .9 - 1.2 * rank ** -.8}).to_csv(path)
  got = run(env, 'report', f'--table={path}', '--law=saturating', '--x=r',
            '--y=q', f'--figure={tmp_path}/fit.png')
  assert got.returncode == 0, got.stderr
  assert 'Q_inf = 0.9 ' in got.stdout and 'b = 0.8 ' in got.stdout
  assert (tmp_path / 'fit.png').stat().st_size > 5000
  for wrong, text in (([f'--table={path}', '--x=none'], "no column 'none'"),
                      ([f'--table={tmp_path}/no.csv'], 'no such file'),
                      ([], 'expected --workdir or --table')):
    bad = run(env, 'report', *wrong)
    assert bad.returncode == 1 and text in bad.stderr
    assert len(bad.stderr.strip().splitlines()) == 1


SEEDS = '''
from tests import tiny

def get_config(point='0,1e-3'):
  seed, lr = point.split(',')
  return tiny.config('unset', **{
      'seed': int(seed), 'opt.lr': float(lr), 'eval.protocol': 'logistic',
      'eval.batch': 12})

def points():
  return ['0,1e-3', '1,1e-3', '1,3e-3']
'''


@pytest.mark.slow
def test_points_of_one_shape_are_trained_in_one_program(
    env, corpus, tasks, tmp_path):
  (tmp_path / 'three.py').write_text(SEEDS)
  arguments = [f'--config={tmp_path}/three.py', f'--config.data.root={corpus}',
               f'--config.eval.tasks={tasks}', '--workers=1', '--noreport']
  for name, together in (('apart', 1), ('together', 4)):
    got = run(env, 'sweep', *arguments, f'--root={tmp_path}/{name}',
              f'--together={together}')
    assert got.returncode == 0, got.stderr
  ours, theirs = final(tmp_path / 'together'), final(tmp_path / 'apart')
  assert set(ours) == set(theirs) and len(ours) == 5
  for name in ours:
    for a, b in zip(ours[name][0], theirs[name][0], strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
  logs = [(w / 'log.txt').exists()
          for w in records.run_folders(tmp_path / 'together')]
  assert sum(logs) == 3  # One of the three points, and two untrained networks.


def test_points_are_grouped_by_shape():
  configs = [tiny.config('', **{'seed': seed, 'opt.lr': lr, 'train.batch': B})
             for seed in (0, 1) for lr in (1e-3, 3e-3) for B in (8, 16)]
  runs = {str(i): (c, 1. + c.train.batch) for i, c in enumerate(configs)}
  runs['twin'] = (tiny.config('', **{'train.steps': 0}), .1)
  jobs = pool.grouped(runs, 3)
  assert [job.runs for job in jobs] == [
      ('1', '3', '5'), ('0', '2', '4'), ('7',), ('6',), ('twin',)]
  assert jobs[0].work == 51.
  assert [j.runs for j in pool.grouped(runs, 1)[-1:]] == [('twin',)]


def test_a_group_that_made_a_mistake_goes_on_one_by_one(tmp_path):
  for name in 'abc':
    (tmp_path / name).mkdir()
  (tmp_path / 'a' / 'DONE').write_text('{}')
  records.write_json(tmp_path / 'b' / 'FAILED', {'error': 'loss nan'})
  job, waiting, failed = pool.Job('a', 3., ('b', 'c')), [], {}
  tries = {name: pool.Tries() for name in 'abc'}
  pool.settle(tmp_path, job, 3, waiting, tries, failed)
  assert waiting == [pool.Job('c', 1.)] and failed == {'b': 'loss nan'}
  waiting.clear()
  pool.settle(tmp_path, job, -9, waiting, tries, failed)
  assert waiting == [job]


@pytest.mark.slow
@pytest.mark.parametrize('experiment', [
    'masking', 'seeds', 'crop_length', 'compute_optimal',
    'architecture_transfer', 'distribution_shift', 'sampling',
    'timestamp_tasks', 'other_modality'])
def test_an_experiment_runs_at_its_smallest_scale(env, tmp_path, experiment):
  """On the embedded world, made on the way, to the report."""
  got = run(env, 'sweep', f'--config=configs/{experiment}.py', '--scale=smoke',
            f'--root={tmp_path}')
  assert got.returncode == 0, got.stderr
  assert got.stdout.splitlines()[-1] == f'{tmp_path}/report.html'
  told = records.collect(tmp_path).runs
  assert told['score'].notna().all() and told['rank'].notna().all()


def test_deaths_in_a_row_are_counted_until_a_run_comes_further(tmp_path):
  deaths = []
  for step in (3, 3, 0, 5, 5, 5):
    holder = lease.Lease(tmp_path)
    deaths.append(holder.deaths)
    holder.tell('training', step, 9, force=True)
    holder.file.close()  # As a kill leaves it: the text stays.
  assert deaths == [0, 1, 2, 3, 1, 2]
  lease.Lease(tmp_path).release()
  holder = lease.Lease(tmp_path)
  assert holder.deaths == 0
  holder.release()


def test_a_machine_that_was_lost_is_no_fault_of_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'machine', lambda: 'another')
  for _ in range(3):
    lease.Lease(tmp_path).file.close()
  monkeypatch.undo()
  holder = lease.Lease(tmp_path)
  assert holder.deaths == 2  # Counted there, but not the last, from here.
  holder.release()
