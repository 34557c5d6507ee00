"""What a run and a sweep survive: each fault, and what it costs.

Rows of the fault table in launch/README.md that other tests produce are named
there.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from audiorank import checkpoint
from audiorank import checksums
from audiorank import lease
from audiorank import records
from launch import pool
from tests import processes
from tests import tiny

STEPS = 240
TWO = '''"""Two points, of which one may diverge."""
from configs import base
from tests import faults_test

def get_config(point='0'):
  return faults_test.config(*%r, {'opt.lr': float(point), 'opt.warmup': 1})

def points():
  return %r
'''


def config(corpus, tasks, changes=()):
  """Returns a config of STEPS steps, its checkpoints all kept."""
  return tiny.config(corpus, **{
      'train.steps': STEPS, 'train.log_every': 20, 'monitor.first': 60,
      'checkpoint.every': 40, 'checkpoint.keep': 40, 'eval.batch': 12,
      'eval.tasks': str(tasks), 'eval.protocol': 'logistic', **dict(changes)})


@pytest.fixture(scope='module')
def env(tmp_path_factory):
  return processes.environment(tmp_path_factory.mktemp('compiled'))


@pytest.fixture
def opened(corpus, tasks, tmp_path):
  """A function that opens a new run of the one config."""
  def make(name, **changes):
    records.open_run(tmp_path / name, config(corpus, tasks, changes))
    return tmp_path / name
  return make


@pytest.fixture(scope='module')
def calm(env, corpus, tasks, tmp_path_factory):
  """(folder, seconds) of a run that nothing disturbed."""
  folder = tmp_path_factory.mktemp('calm') / 'run'
  records.open_run(folder, config(corpus, tasks))
  # Once for the compilation cache: then it takes what a restart takes.
  for name in ('cold', 'run'):
    records.open_run(folder.parent / name, config(corpus, tasks))
    began = time.monotonic()
    assert processes.worker(env, folder.parent / name).wait(600) == 0, (
        processes.said(folder.parent / name))
  return folder, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize('kills', [2, 20])
def test_a_worker_killed_at_any_moment_costs_nothing(
    env, opened, calm, kills):
  workdir, (undisturbed, seconds) = opened('killed'), calm
  rng, killed = random.Random(kills), 0
  while killed < kills:
    process = processes.worker(env, workdir)
    try:
      # From the start of the process: imports, restoring, steps, saves,
      # readings and scoring are all hit.
      code = process.wait(rng.uniform(.2, 1.1) * seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      killed += 1
      continue
    assert code == 0, processes.said(workdir)
    # Done: as new, but for what the killed left behind.
    processes.check_same(workdir, undisturbed)
    shutil.rmtree(workdir / 'checkpoints')
    shutil.rmtree(workdir / 'records')
    (workdir / 'DONE').unlink()
  code = processes.worker(env, workdir).wait(600)
  assert code == 0, processes.said(workdir)
  processes.check_same(workdir, undisturbed)
  assert processes.worker(env, workdir).wait(600) == 0


def left(process):
  """Asks a worker to leave; returns (exit code, seconds)."""
  began = time.monotonic()
  process.send_signal(signal.SIGTERM)
  return process.wait(120), time.monotonic() - began


@pytest.mark.parametrize('phase, step', [
    ('compilation', 0), ('training', 90),
    pytest.param('measuring', 60, marks=pytest.mark.slow),
    pytest.param('scoring', STEPS, marks=pytest.mark.slow)])
def test_sigterm_in_any_phase_is_42_within_seconds(
    env, opened, calm, tmp_path, phase, step):
  workdir, undisturbed = opened('asked'), calm[0]
  if phase == 'compilation':
    env = processes.environment(tmp_path / 'cold')
  process = processes.worker(env, workdir)
  if phase == 'compilation':
    processes.wait_for(workdir, process, 'starting')
    # The first program is in the cache when the next is being compiled.
    end = time.monotonic() + 300
    while not any((tmp_path / 'cold').glob('*')):
      assert time.monotonic() < end and process.poll() is None
      time.sleep(.01)
  else:
    told = processes.wait_for(workdir, process, phase, step)
  code, seconds = left(process)
  assert code == pool.AGAIN, processes.said(workdir)
  assert seconds < 30  # Of a machine that does nothing else, 5.
  if phase == 'training':
    saved = checksums.steps(workdir / 'checkpoints')[-1]
    assert saved >= told['step'] and checkpoint.fsck(workdir)[-1][1] == ''
  assert processes.worker(env, workdir).wait(600) == 0
  processes.check_same(workdir, undisturbed)


@pytest.mark.parametrize('steps, code', [((7,), 42), ((7, 8), 9)],
                         ids=['idle', 'at work'])
def test_a_call_that_never_polls_is_left_unless_work_would_be_lost(
    steps, code):
  """The watching thread alone: a call of 8 s stands in for a compiler."""
  script = f'''
import sys, time
from launch import worker
class Held:
  tell = print
leaving = worker.Exit()
for step in {steps}:
  leaving.tell(Held)('training', step, 100)
print('ready', flush=True)
time.sleep(8)
sys.exit(9 if leaving.asked else 1)
'''
  process = subprocess.Popen([sys.executable, '-c', script],
                             cwd=processes.ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
  while process.stdout.readline() != 'ready\n':
    assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == code
  process.stdout.close()


def tree(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def test_every_file_of_a_checkpoint_counts(calm, tmp_path, capsys):
  shutil.copytree(calm[0], tmp_path / 'run')
  run = tmp_path / 'run'
  folder = run / 'checkpoints'
  step, before = checksums.steps(folder)[-1], checksums.steps(folder)[-2]
  files = [*tree(folder / str(step)), folder / f'{step}.sha256.json']
  assert len(files) > 10
  for file in files:
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damage in (bytes(flipped), whole[:len(whole) // 2], None):
      if damage == whole:
        continue
      file.unlink()
      if damage is not None:
        file.write_bytes(damage)
      shutil.copytree(run, tmp_path / 'copy')
      assert checkpoint.main(['', 'fsck', str(run)]) == 1, file
      assert checkpoint.newest(tmp_path / 'copy' / 'checkpoints') == before
      assert (tmp_path / 'copy' / 'damaged' / str(step)).is_dir()
      shutil.rmtree(tmp_path / 'copy')
      file.write_bytes(whole)
  capsys.readouterr()
  assert checkpoint.newest(folder) == step


FULL = '''
set -u
mount -t tmpfs -o size={size} tmpfs {disk} || exit 77
mkdir {disk}/run && cp {config} {disk}/run/ || exit 1
{worker} 2>{disk}.err; echo $? > {disk}.code
cp {disk}/run/FAILED {disk}.failed
mount -o remount,size=1G {disk} || exit 1
{worker} && cp -r {disk}/run {out}
'''


@pytest.mark.slow
def test_a_full_disk_loses_at_most_the_save(env, opened, calm, tmp_path):
  workdir, (undisturbed, _) = opened('new'), calm
  disk = tmp_path / 'disk'
  disk.mkdir()
  used = sum(f.stat().st_blocks * 512 for f in tree(undisturbed))
  script = FULL.format(
      size=used // 2, disk=disk, config=workdir / 'config.json',
      out=tmp_path / 'out',
      worker=f'{sys.executable} -m launch.train --workdir={disk}/run')
  done = subprocess.run(
      ['unshare', '--mount', '--map-root-user', 'sh', '-c', script],
      cwd=processes.ROOT, env=env, capture_output=True, text=True,
      timeout=1200)
  if done.returncode == 77 or 'unshare' in done.stderr:
    pytest.skip(f'no file system of its own here: {done.stderr.strip()}')
  assert done.returncode == 0, done.stderr
  assert int((tmp_path / 'disk.code').read_text()) not in (0, pool.AGAIN)
  said = (tmp_path / 'disk.err').read_text()
  assert 'Traceback' not in said and 'space' in said, said
  processes.check_same(tmp_path / 'out', undisturbed)


def sweep(env, folder, points, corpus, tasks, *more):
  """Starts a sweep of TWO's points; its output goes to <folder>/said.txt."""
  (folder / 'two.py').write_text(TWO % ((str(corpus), str(tasks)), points))
  with open(folder / 'said.txt', 'ab') as said:
    return subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', f'--config={folder}/two.py',
         f'--root={folder}/runs', '--noreport', *more], cwd=processes.ROOT,
        env=env, stdout=said, stderr=said)


@pytest.mark.slow
def test_two_launchers_at_once_do_no_run_twice(
    env, corpus, tasks, tmp_path):
  both = [sweep(env, tmp_path, ['1e-3', '2e-3'], corpus, tasks, '--workers=2')
          for _ in range(2)]
  trained, unreaped = {}, {}
  while any(p.poll() is None for p in both):
    for workdir in records.run_folders(tmp_path / 'runs'):
      told = lease.read(workdir)
      if told.get('step'):
        trained.setdefault(workdir.name, set()).add(told['pid'])
    for launcher in both:
      for pid in processes.zombies(launcher.pid):
        unreaped[pid] = unreaped.get(pid, 0) + 1
    time.sleep(.05)
  assert [p.returncode for p in both] == [0, 0], (
      tmp_path / 'said.txt').read_text()
  assert all(len(pids) == 1 for pids in trained.values()) and trained
  # A launcher looks five times a second, or seldom where the machine is slow.
  assert max(unreaped.values(), default=0) < 200
  processes.check_nobody_left(tmp_path)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(
    env, corpus, tasks, tmp_path):
  command = env, tmp_path, ['1e-3'], corpus, tasks, '--workers=2'
  process, told = sweep(*command), {}
  end = time.monotonic() + 600
  while told.get('step', 0) < 90:
    assert time.monotonic() < end and process.poll() is None, (
        tmp_path / 'said.txt').read_text()
    time.sleep(.01)
    # Its twin takes no step.
    for folder in records.run_folders(tmp_path / 'runs'):
      if lease.read(folder).get('step'):
        workdir, told = folder, lease.read(folder)
  process.send_signal(signal.SIGINT)
  assert process.wait(120) == pool.AGAIN
  processes.check_nobody_left(tmp_path, seconds=0)
  assert checksums.steps(workdir / 'checkpoints')[-1] >= told['step']
  said = (tmp_path / 'said.txt').read_text()
  assert 'Traceback' not in said and 'the same command goes on' in said
  assert sweep(*command).wait(600) == 0
  undisturbed = tmp_path / 'undisturbed'
  records.open_run(undisturbed, records.load_config(workdir))
  assert processes.worker(env, undisturbed).wait(600) == 0
  processes.check_same(workdir, undisturbed)


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_the_sweep(
    env, corpus, tasks, tmp_path):
  process = sweep(env, tmp_path, ['1e30', '1e-3'], corpus, tasks)
  assert process.wait(600) == 1
  said = (tmp_path / 'said.txt').read_text()
  assert 'Traceback' not in said and 'failed: ' in said
  states = {}
  for workdir in records.run_folders(tmp_path / 'runs'):
    states.setdefault(records.state(workdir), []).append(workdir)
  assert len(states['done']) == 2
  (bad,) = states['failed']
  told = records.read_json(bad / 'FAILED')
  assert told['last_good_step'] == told['step'] - 1 and told['clips']
  # The same command does not try it again by itself for ever: it may, once.
  assert sweep(env, tmp_path, ['1e30', '1e-3'], corpus,
               tasks).wait(600) == 1


def test_no_clock_ends_a_lease(tmp_path, monkeypatch):
  held = lease.Lease(tmp_path)
  for moment in (0, 2 ** 31):
    os.utime(tmp_path / 'LEASE', (moment, moment))
    monkeypatch.setattr(time, 'time', lambda: float(moment))
    monkeypatch.setattr(time, 'monotonic', lambda: float(moment))
    assert lease.alive(tmp_path)
    with pytest.raises(lease.Held):
      lease.Lease(tmp_path)
  held.release()
  assert not lease.alive(tmp_path)
