"""The sweep as its user runs it: whole, killed, repeated, misused."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from audiorank import files
from audiorank import lease
from audiorank import records
from audiorank.records import lock as lock_lib
from configs import minute
from launch import cli
from launch import devices
from launch import grid
from launch import run_queue
from launch import synthetic
from launch.engines import local
from tests import processes
from tests import tiny

POINTS = '''"""Two points.

  python -m launch.sweep --config=FILE --root=DIR
"""
from tests import tiny

def get_config(point='1e-3'):
  return tiny.config('', **{
      'opt.lr': float(point), 'train.steps': 120, 'train.log_every': 5,
      'monitor.first_eval': 5, 'monitor.num_evals': 4,
      'checkpoint.save_every': 20,
      'checkpoint.keep_every': 1000, 'eval.batch': 12,
      'eval.protocol': 'logistic'})

def points():
  return ['1e-3', '2e-3']
'''


def command(name, *arguments):
  return [sys.executable, '-m', f'launch.{name}', *map(str, arguments)]


def run(env, name, *arguments, timeout=400):
  return subprocess.run(command(name, *arguments), cwd=processes.ROOT, env=env,
                        capture_output=True, text=True, timeout=timeout)


def final(root):
  """Returns {run: (parameters, records without times)} of a sweep."""
  return {workdir.name: processes.final(workdir)
          for workdir in records.run_folders(root)}


@pytest.fixture(scope='module')
def arguments(corpus, tasks, tmp_path_factory):
  """Flags of a sweep of two points."""
  folder = tmp_path_factory.mktemp('points')
  (folder / 'two.py').write_text(POINTS)
  return [f'--config={folder}/two.py', f'--config.data.root={corpus}',
          f'--config.eval.tasks={tasks}',
          '--config.eval.task_names=timbre-v1-full']


@pytest.fixture(scope='module')
def calm(server, arguments, tmp_path_factory):
  """The root of a sweep that nothing disturbed, done by one worker."""
  folder = tmp_path_factory.mktemp('calm')
  for words in (['sweep', 'write', *arguments], ['worker']):
    done = server.run(folder, *words, f'--root={folder}/runs')
    assert done.returncode == 0, done.stderr
  return folder / 'runs'


def test_killed_anywhere_the_same_command_ends_in_the_same_numbers(
    server, arguments, calm, tmp_path):
  root = tmp_path / 'killed'
  words = 'sweep', *arguments, '--workers=1', '--noreport', f'--root={root}'
  sweep = server.start([tmp_path / 'killed.txt'] * 2, *words)
  # A worker, which the launcher replaces; then the launcher.
  victim = wait_for(root, sweep)['pid']
  os.kill(victim, signal.SIGKILL)
  wait_for(root, sweep, but=victim)
  sweep.kill()
  sweep.wait()
  processes.check_nobody_left(root, 60)
  again = server.run(tmp_path, *words)
  assert again.returncode == 0, again.stderr
  ours, theirs = final(calm), final(root)
  assert set(ours) == set(theirs) and len(ours) == 3
  for name in ours:
    for a, b in zip(ours[name][0], theirs[name][0], strict=True):
      np.testing.assert_array_equal(a, b)
    assert ours[name][1] == theirs[name][1]


def test_a_report_is_rebuilt_and_scores_are_those_of_evaluate(
    server, tasks, calm, tmp_path):
  root = tmp_path / 'runs'
  shutil.copytree(calm, root)
  rebuilt = []
  for _ in range(2):
    got = server.run(tmp_path, 'report', f'--workdir={root}')
    assert got.returncode == 0, got.stderr
    rebuilt.append((root / 'report.html').read_text())
    (root / 'report.html').unlink()
  assert rebuilt[0] == rebuilt[1]
  scored_again_by_hand(server, tmp_path, tasks, records.run_folders(root)[0])


@pytest.mark.parametrize('copied', [
    True, pytest.param(False, marks=pytest.mark.slow)])
def test_runs_of_a_published_table_are_trained_again_and_compared(
    server, arguments, calm, tmp_path, copied):
  """All of this machine's; copied: by a sweep that has trained them before."""
  root, tables = tmp_path / 'again', tmp_path / 'tables'
  records.publish(calm, tables)
  if copied:
    shutil.copytree(calm, root)
  words = 'sweep', 'reproduce', *arguments, '--workers=1', '--noreport'
  got = server.run(tmp_path, *words, f'--root={root}', '--share=.5',
                   f'--table={tables}/runs.parquet')
  assert got.returncode == 0, got.stderr
  *_, run, last = got.stdout.splitlines()
  assert last == '1 runs: all within 1e-05'
  # The run and its untrained network: nothing else was written.
  trained = records.run_folders(root)
  assert len(trained) == 3 if copied else len(trained) == 2
  assert run.split()[0] in {folder.name for folder in trained}
  # Another corpus makes other runs, which are not those of the table.
  got = server.run(tmp_path, *words, f'--root={tmp_path}/other',
                   f'--table={tables}/runs.parquet', '--config.opt.b1=.8')
  assert got.returncode == 1 and got.stderr.count('\n') == 1
  assert 'are no points of this config' in got.stderr


def test_a_sweep_with_a_failed_run_names_it_and_reports_all_the_same(
    server, arguments, calm, tmp_path):
  root = tmp_path / 'runs'
  shutil.copytree(calm, root)
  bad = records.run_folders(root)[0]
  (bad / 'DONE').unlink()
  # As a loss that diverged leaves it: only `retry` has it tried again.
  files.write_json(bad / 'FAILED', {'error': 'loss nan', 'last_good_step': 3})
  got = server.run(tmp_path, 'sweep', *arguments, f'--root={root}')
  assert got.returncode == 1
  assert '3 known, 2 done before, 1 diverged before' in got.stdout
  assert got.stdout.splitlines()[-1] == f'{root}/report.html'
  assert (root / 'report.html').is_file()
  assert f'failed: {bad}: loss nan' in got.stderr.splitlines()
  assert got.stderr.splitlines()[-1] == '1 of 3 runs failed'


def test_the_same_root_with_other_fields_adds_runs_and_keeps_the_old_ones(
    server, arguments, calm, tmp_path):
  root = tmp_path / 'runs'
  shutil.copytree(calm, root)
  known = server.run(tmp_path, 'sweep', 'write', *arguments, f'--root={root}')
  assert '3 runs: 0 new, 3 known, 3 done before' in known.stdout
  # Two points have another number of steps; their baseline has none.
  more = server.run(tmp_path, 'sweep', 'write', *arguments,
                    '--config.train.steps=90', f'--root={root}')
  assert '3 runs: 2 new, 1 known, 1 done before' in more.stdout
  # Of these two nobody speaks any more, but they are left to be done.
  again = server.run(tmp_path, 'sweep', 'write', *arguments, f'--root={root}')
  assert '2 unfinished runs of earlier commands' in again.stdout
  status = server.run(tmp_path, 'sweep', 'status', f'--root={root}').stdout
  assert status.splitlines()[-1] == '3 done, 2 new'
  assert len(records.tables(root).runs) == 5


def scored_again_by_hand(server, folder, tasks, workdir):
  """launch.evaluate gives the scores that the run recorded itself."""
  got = server.run(folder, 'evaluate', f'--checkpoint={workdir}',
                   f'--tasks={tasks}', '--protocol=logistic', '--batch=12',
                   '--task=timbre-v1-full', f'--out={workdir}/again.json')
  assert got.returncode == 0, got.stderr
  (record,) = [r for r in records.read(workdir)
               if r['kind'] == 'hear.timbre-v1-full']
  again = files.read_json(workdir / 'again.json')['timbre-v1-full']
  assert again['result']['scores'] == record['result']['scores']


def wait_for(root, sweep, but=None):
  """Waits until a worker trains; returns what its lock's file says."""
  end = time.monotonic() + 300
  while time.monotonic() < end and sweep.poll() is None:
    for workdir in records.run_folders(root) if root.exists() else []:
      holder = lock_lib.read(workdir)
      if (holder.get('step', 0) >= 5 and lock_lib.alive(workdir)
          and holder['pid'] != but):
        return holder
    time.sleep(.02)
  raise AssertionError('nothing was trained')


@pytest.mark.slow
def test_shipped_quickstart_runs_end_to_end(env, tmp_path):
  small = {
      'data.world.hours': .12, 'data.world.train_clips': 16,
      'data.world.valid_clips': 8, 'data.world.test_clips': 16,
      'data.valid_fraction': .3, 'data.hours': .03, 'train.steps': 3,
      'opt.warmup': 1, 'monitor.clips': 80, 'monitor.batch': 20,
      'monitor.valid_clips': 16, 'monitor.num_evals': 2}
  done = run(env, 'sweep', '--config=configs/quickstart.py',
             f'--root={tmp_path}',
             *(f'--config.{k}={v}' for k, v in small.items()), timeout=580)
  assert done.returncode == 0, done.stderr[-2000:]
  # One volume for all points: 3 sizes x 2 masks, and 3 untrained networks.
  assert '9 runs: 9 new' in done.stdout
  page = pathlib.Path(done.stdout.splitlines()[-1]).read_text()
  assert page.count('<img') >= 7 and 'untrained' in page
  assert 'http' not in page.replace('http-equiv', '')
  runs = records.load(tmp_path).runs
  assert set(runs['state']) == {'done'} and runs['untrained'].sum() == 3
  assert (runs['scored_tasks'] == 3).all() and runs['rank'].notna().all()


def test_shipped_minute_runs_on_the_synthetic_dataset(env, tmp_path):
  """By its name, from another folder, as an installed command would."""
  small = {
      'data.world.hours': .06, 'data.world.train_clips': 16,
      'data.world.valid_clips': 8, 'data.world.test_clips': 16,
      'data.valid_fraction': .3, 'data.hours': .01, 'train.steps': 3,
      'opt.warmup': 1, 'monitor.clips': 40, 'monitor.batch': 20,
      'monitor.valid_clips': 16, 'monitor.num_evals': 2}
  main = processes.ROOT / 'launch' / '__main__.py'
  done = subprocess.run(
      [sys.executable, '-P', main, 'sweep', '--config=minute', '--root=runs',
       *(f'--config.{k}={v}' for k, v in small.items())], cwd=tmp_path,
      env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  assert '4 runs: 4 new' in done.stdout
  assert done.stdout.splitlines()[-1] == 'runs/report.html'
  assert 'untrained' in (tmp_path / 'runs/report.html').read_text()


def test_a_damaged_record_is_one_line_that_names_the_run(tmp_path):
  from configs import base
  records.open_run(tmp_path / 'r', base.get_config('en128-12'))
  files.write_json(tmp_path / 'r/records/monitor-00000001.json',
                   {'kind': 'monitor', 'step': 1})
  with pytest.raises(ValueError, match='/r: config.json or a record is dama'):
    records.collect(tmp_path)


GPUS = {devices.PRETENDED: 'gpu:2:16'}


@pytest.mark.parametrize('arguments, text, more', [
    (['--config.data.rooot=x'], 'rooot', {}),
    (['--config.train.call=2'], 'is now train.steps_per_call', {}),
    (['--config.data.root=/none', '--config.eval.tasks={tasks}'], '/none', {}),
    (['--config.train.steps=many'], 'train.steps', {}),
    (['--config.data.root={empty}', '--config.eval.tasks={tasks}'],
     'was not made by prepare', {}),
    (['--config.data.root={corpus}', '--config.eval.tasks={empty}'],
     'no task here', {}),
    (['--config.data.root={corpus}'], 'eval.tasks is empty', {}),
    (['--config.data.root={corpus}', '--config.eval.tasks={tasks}',
      '--config.mesh.data=1', '--config.mesh.fsdp=3'], 'mesh.fsdp 3', {}),
    (['--config.data.root={corpus}', '--config.eval.tasks={tasks}',
      '--config.eval.task_names=timber-v1-full'], 'mean timbre-v1-full?', {}),
    # Before sounds are rendered for a config without a corpus:
    (['--config.eval.tasks=/nowhere'], '/nowhere', {}),
    (['--config.eval.protocol=linear'], "eval.protocol 'linear'", {}),
    (['--roles=trian'], "no role 'trian'", {}),
    (['--devices=3'], 'there are 2 gpus here', GPUS),
    (['--workers=3'], '--workers=3: sets the workers of a CPU', GPUS),
    (['--per_device=2'], 'only a GPU can be shared',
     {devices.PRETENDED: 'tpu:2'}),
    (['--config.model.width=1536', '--config.model.depth=40',
      '--config.model.heads=24', '--config.model.decoder.width=1536',
      '--config.model.decoder.depth=40'],
     'do not fit into 1 of 2 gpus of 16.0 GB', GPUS),
])
def test_bad_input_gets_one_line_and_leaves_nothing(
    server, corpus, tasks, tmp_path, arguments, text, more):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'two.py').write_text(POINTS)
  filled = [a.format(corpus=corpus, tasks=tasks, empty=tmp_path / 'empty')
            for a in arguments]
  got = server.run(tmp_path, 'sweep', f'--config={tmp_path}/two.py',
                   f'--root={tmp_path}/root', *filled, TMPDIR=str(tmp_path),
                   **more)
  assert got.returncode == 1
  lines = [line for line in got.stderr.splitlines() if line.strip()]
  assert len(lines) == 1 and lines[0].startswith('error: ')
  assert text in lines[0]
  assert not list((tmp_path / 'root').glob('*/config.json'))
  assert not list((tmp_path / 'root').glob('world'))


@pytest.mark.parametrize('more, text', [
    ('raise RuntimeError("no grid")', 'odd.py, line {last}: RuntimeError: no'),
    ('def points():\n  return []', 'odd.py: points() is empty'),
    ('def get_config(point="1"):\n  c = tiny.config("")\n'
     '  with c.ignore_type():\n    c.opt.lr = abs\n  return c',
     'odd.py:1e-3.opt.lr: <built-in function abs> is not')],
    ids=['raises', 'empty', 'a function'])
def test_an_odd_config_file_is_one_line_before_anything_is_written(
    server, tmp_path, more, text):
  (tmp_path / 'odd.py').write_text(f'{POINTS}\n{more}\n')
  last = len((tmp_path / 'odd.py').read_text().splitlines())
  got = server.run(tmp_path, 'sweep', f'--config={tmp_path}/odd.py',
                   f'--root={tmp_path}/root')
  assert got.returncode == 1
  (line,) = got.stderr.splitlines()
  assert line.startswith('error: ') and text.format(last=last) in line
  assert not list((tmp_path / 'root').glob('*'))


def test_a_plan_refuses_what_a_sweep_refuses(server, tmp_path):
  got = server.run(tmp_path, 'sweep', 'plan', '--config=minute',
                   '--config.mask.ratio=1.5')
  assert got.returncode == 1 and not got.stdout
  (line,) = got.stderr.splitlines()
  assert line.startswith('error: mask.ratio 1.5: expected')


def test_too_many_clips_are_refused_before_any_sound_is_written(tmp_path):
  config = minute.get_config()
  config.monitor.clips = 9999
  with pytest.raises(ValueError, match='^monitor.clips 9999: data.world.hours'):
    synthetic.dataset(tmp_path, config)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, text', [
    ('configs/base.py:en128-12', '--config=configs/base.py:en128-12: no such '
     '.py file'),
    ('nowhere.py', 'nowhere.py: no such file'),
    ('quickstrat', 'Did you mean quickstart?'),
    ('configs/quickstrat.py', 'Did you mean configs/quickstart.py?')])
def test_a_config_that_is_no_file_is_one_line(server, tmp_path, name, text):
  got = server.run(tmp_path, 'sweep', 'plan', f'--config={name}')
  assert got.returncode == 1
  (line,) = got.stderr.splitlines()
  assert line.startswith('error: ') and text in line


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path):
  holder = lock_lib.Lock(tmp_path)
  holder.report('training', 3, 9, force=True)
  holder.report('scoring', force=True)
  assert lock_lib.read(tmp_path)['step'] == 3 and lock_lib.alive(tmp_path)
  with pytest.raises(lock_lib.LockHeld, match=f'process {os.getpid()}'):
    lock_lib.Lock(tmp_path)
  holder.release()
  assert not lock_lib.alive(tmp_path)
  lock_lib.Lock(tmp_path).release()


def test_a_second_worker_leaves_and_is_to_come_again(
    server, corpus, tmp_path):
  workdir = tmp_path / 'run'
  records.open_run(workdir, tiny.config(corpus))
  holder = lock_lib.Lock(workdir)
  got = server.run(tmp_path, 'train', f'--workdir={workdir}')
  assert got.returncode == cli.AGAIN
  (line,) = got.stderr.splitlines()
  assert f'process {os.getpid()} on' in line and lock_lib.alive(workdir)
  assert not (workdir / 'checkpoints').exists()
  holder.release()


def full(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_neither_a_worker_that_reports_nor_the_sweep(
    tmp_path, monkeypatch):
  holder = lock_lib.Lock(tmp_path)
  with monkeypatch.context() as m:
    m.setattr(os, 'write', full)
    holder.report('training', 3, 9, force=True)
  assert lock_lib.read(tmp_path) == {} and lock_lib.alive(tmp_path)
  holder.report('training', 4, 9, force=True)
  assert lock_lib.read(tmp_path)['step'] == 4
  holder.release()
  monkeypatch.setattr(files, 'write_json', full)
  run_queue.fail(tmp_path, ValueError('no room'))
  assert records.state(tmp_path) != 'failed'


@pytest.fixture
def place(tmp_path):
  """A place with a worker that has ended; a board of one run."""
  files.write_json(tmp_path / 'sweep.json', {
      'runs': {'r': run_queue.Entry(1., 9, 'g', 'p', 'm')._asdict()}})
  (tmp_path / 'r').mkdir()
  slot = devices.Slot('cpu-0', (), None, {})
  out = local.Place(slot, tmp_path / 'log.txt')
  (tmp_path / 'log.txt').write_text('x\nerror: no such thing\n\n')
  board = run_queue.Board(tmp_path)

  def ended(code, has_a_run=False):
    process = subprocess.Popen(['true'])
    process.wait()
    process.returncode = code
    out.process = process
    if has_a_run:
      files.write_json(tmp_path / 'r' / 'LEASE', {'pid': process.pid})
    board.look()
    return out.settle(board)

  return out, ended


def test_what_an_ended_worker_means(place):
  out, ended = place
  assert ended(0) and not out.error
  assert not ended(cli.AGAIN) and not out.error
  for _ in range(run_queue.DEATHS - 1):
    assert not ended(-9) and not out.error
  ended(0)
  for _ in range(run_queue.DEATHS):
    ended(134)
  assert 'died 5 times before it had a run (code 134)' in out.error
  out.error = ''
  ended(1)
  assert out.error == 'no such thing'


def test_deaths_of_a_worker_that_had_a_run_are_counted_by_the_run(place):
  out, ended = place
  for _ in range(2 * run_queue.DEATHS):
    ended(-9, has_a_run=True)
  assert not out.error


def test_report_fits_anybodys_table(server, tmp_path):
  rank = np.geomspace(5, 500, 12)
  path = tmp_path / 't.csv'
  pd.DataFrame({'r': rank, 'q': .9 - 1.2 * rank ** -.8}).to_csv(path)
  got = server.run(tmp_path, 'report', f'--table={path}', '--law=saturating',
                   '--x=r', '--y=q', f'--figure={tmp_path}/fit.png')
  assert got.returncode == 0, got.stderr
  assert 'Q_inf = 0.9 ' in got.stdout and 'b = 0.8 ' in got.stdout
  assert (tmp_path / 'fit.png').stat().st_size > 5000
  for wrong, text in (([f'--table={path}', '--x=none'], "no column 'none'"),
                      ([f'--table={tmp_path}/no.csv'], 'no such file'),
                      ([], 'expected one of --workdir, --table')):
    bad = server.run(tmp_path, 'report', *wrong)
    assert bad.returncode == 1 and text in bad.stderr
    assert len(bad.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize('experiment', [
    'masking', 'seeds', 'crop_length', 'compute_optimal',
    'architecture_transfer', 'distribution_shift', 'sampling',
    'timestamp_tasks', 'other_modality'])
def test_an_experiment_runs_at_its_smallest_scale(env, tmp_path, experiment):
  """On the synthetic dataset, written on the way, to the report."""
  got = run(env, 'sweep', f'--config=configs/{experiment}.py', '--scale=smoke',
            f'--root={tmp_path}')
  assert got.returncode == 0, got.stderr
  assert got.stdout.splitlines()[-1] == f'{tmp_path}/report.html'
  runs = records.collect(tmp_path).runs
  assert runs['score'].notna().all() and runs['rank'].notna().all()
def test_deaths_in_a_row_are_counted_until_a_run_comes_further(tmp_path):
  deaths = []
  for step in (3, 3, 0, 5, 5, 5):
    holder = lock_lib.Lock(tmp_path)
    deaths.append(holder.deaths)
    holder.report('training', step, 9, force=True)
    holder._claim._file.close()  # As a kill leaves it: the text stays.
  assert deaths == [0, 1, 2, 3, 1, 2]
  lock_lib.Lock(tmp_path).release()
  holder = lock_lib.Lock(tmp_path)
  assert holder.deaths == 0
  holder.release()


def test_a_machine_that_was_lost_is_no_fault_of_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'machine', lambda: 'another')
  for _ in range(3):
    lock_lib.Lock(tmp_path)._claim._file.close()
  monkeypatch.undo()
  holder = lock_lib.Lock(tmp_path)
  assert holder.deaths == 2  # Counted there, but not the last, from here.
  holder.release()


def test_a_run_that_somebody_works_on_keeps_its_settings(corpus, tmp_path):
  workdir = tmp_path / 'run'
  config = tiny.config(corpus)
  records.open_run(workdir, config)
  holder = lock_lib.Lock(workdir)
  config.mesh.fsdp = 2
  grid.open_run(workdir, config)
  assert records.load_config(workdir).mesh.fsdp == 1
  config.eval.grid_points = 1
  with pytest.raises(lock_lib.LockHeld):
    grid.open_run(workdir, config)
  holder.release()
  grid.open_run(workdir, config)
  assert records.load_config(workdir).mesh.fsdp == 2


def test_scorers_wait_for_runs_that_are_trained_elsewhere(tmp_path):
  entry = run_queue.Entry(1., 9, 'g', 'p', 'm')._asdict()
  files.write_json(tmp_path / 'sweep.json', {'runs': {'r': entry}})
  holder = lock_lib.Lock(tmp_path / 'r')
  board = run_queue.Board(tmp_path)
  assert local.awaited(board, ['score'], set())
  assert local.awaited(board, ['train'], set())
  assert not local.awaited(board, ['train'], {'r'})
  holder.report('training', 3, 9, force=True)
  holder._claim._file.close()
  assert not local.awaited(board, ['score'], set())


def test_a_trained_run_copied_without_its_lock_is_scored(tmp_path):
  entry = run_queue.Entry(1., 9, 'g', 'p', 'm')._asdict()
  files.write_json(tmp_path / 'sweep.json', {'runs': {'r': entry}})
  (tmp_path / 'r').mkdir()
  (tmp_path / 'r' / 'TRAINED').write_text('')
  assert run_queue.Board(tmp_path).left(['score']) == ['r']
