"""What a run and a sweep survive: each fault, and what it costs.

Rows of the fault table in launch/README.md that other tests produce are named
there.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from audiorank import checkpoint
from audiorank import files
from audiorank import records
from audiorank.records import lock as lock_lib
from launch import cli
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
      'train.steps': STEPS, 'train.log_every': 20, 'monitor.first_eval': 60,
      'checkpoint.save_every': 40, 'checkpoint.keep_every': 40,
      'eval.batch': 12,
      'eval.tasks': str(tasks), 'eval.protocol': 'logistic', **dict(changes)})


@pytest.fixture
def opened(corpus, tasks, tmp_path):
  """A function that opens a new run of the one config."""
  def open_new(name, **changes):
    records.open_run(tmp_path / name, config(corpus, tasks, changes))
    return tmp_path / name
  return open_new


@pytest.fixture(scope='module')
def calm(server, corpus, tasks, tmp_path_factory):
  """The folder of a run that nothing disturbed."""
  folder = tmp_path_factory.mktemp('calm') / 'run'
  records.open_run(folder, config(corpus, tasks))
  assert processes.worker(server, folder).wait(600) == 0, (
      processes.output(folder))
  return folder


def test_a_worker_killed_at_three_moments_loses_nothing(server, opened, calm):
  workdir = opened('killed')
  for phase, step in (('training', 90), ('evaluating', 60), ('scoring', STEPS)):
    process = processes.worker(server, workdir)
    processes.wait_for(workdir, process, phase, step)
    process.kill()
    process.wait()
  assert processes.worker(server, workdir).wait(600) == 0, (
      processes.output(workdir))
  processes.check_same(workdir, calm)
  assert processes.worker(server, workdir).wait(600) == 0


@pytest.mark.slow
def test_a_worker_killed_at_twenty_moments_loses_nothing(
    server, opened, calm, corpus, tasks):
  rng, killed = random.Random(20), 0
  began = time.monotonic()
  assert processes.worker(server, opened('again')).wait(600) == 0
  seconds = time.monotonic() - began  # Of a run whose programs are compiled.
  workdir = opened('killed')
  while killed < 20:
    process = processes.worker(server, workdir)
    try:
      # From the start of the process: imports, restoring, steps, saves,
      # evaluations and scoring are all hit.
      code = process.wait(rng.uniform(.1, 1.1) * seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      killed += 1
      continue
    assert code == 0, processes.output(workdir)
    # Done: as new, but for what the killed left behind.
    processes.check_same(workdir, calm)
    shutil.rmtree(workdir / 'checkpoints')
    shutil.rmtree(workdir / 'records')
    (workdir / 'DONE').unlink()
    (workdir / 'TRAINED').unlink()
  assert processes.worker(server, workdir).wait(600) == 0, (
      processes.output(workdir))
  processes.check_same(workdir, calm)


def left(process):
  """Asks a worker to leave; returns (exit code, seconds)."""
  began = time.monotonic()
  process.send_signal(signal.SIGTERM)
  return process.wait(120), time.monotonic() - began


@pytest.mark.parametrize('phase, step', [
    ('compilation', 0),
    pytest.param('training', 90, marks=pytest.mark.slow),
    pytest.param('evaluating', 60, marks=pytest.mark.slow),
    pytest.param('scoring', STEPS, marks=pytest.mark.slow)])
def test_sigterm_in_any_phase_is_42_within_seconds(
    server, opened, calm, tmp_path, phase, step):
  workdir, cache = opened('asked'), {}
  if phase == 'compilation':
    cache = {'AUDIORANK_CACHE': str(tmp_path / 'cold')}
  process = processes.worker(server, workdir, **cache)
  if phase == 'compilation':
    processes.wait_for(workdir, process, 'starting')
    # The first program is in the cache when the next is being compiled.
    end = time.monotonic() + 300
    while not any((tmp_path / 'cold').glob('compiled/*')):
      assert time.monotonic() < end and process.poll() is None
      time.sleep(.01)
  else:
    holder = processes.wait_for(workdir, process, phase, step)
  code, seconds = left(process)
  assert code == cli.AGAIN, processes.output(workdir)
  assert seconds < 30  # Of a machine that does nothing else, 5.
  assert lock_lib.read(workdir) == {}  # Nobody died.
  if phase == 'training':
    saved = checkpoint.steps(workdir / 'checkpoints')[-1]
    assert saved >= holder['step'] and checkpoint.fsck(workdir)[-1][1] == ''
  if phase == 'compilation':
    return
  assert processes.worker(server, workdir).wait(600) == 0
  processes.check_same(workdir, calm)


CALLS = {'': 42, 'busy idle': 42, 'busy': 9}
# The watching thread alone: a call of 2 s stands in for a compiler.
NEVER_POLLS = '''
import json, os, signal, sys, time
from launch import work
work.PATIENCE = .3

def call(names):
  status = work.Status()
  for name in names.split():
    getattr(status, name)()
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(2)
  os._exit(9 if status.asked else 1)

pids = []
for names in sys.argv[1:]:
  pids.append(os.fork())
  if not pids[-1]:
    call(names)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                  for pid in pids]))
'''


def test_a_call_that_never_polls_is_left_unless_work_would_be_lost():
  done = subprocess.run(
      [sys.executable, '-W', 'ignore', '-c', NEVER_POLLS, *CALLS],
      cwd=processes.ROOT, capture_output=True, text=True, timeout=120)
  assert json.loads(done.stdout) == [*CALLS.values()], done.stderr


def tree(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def test_every_file_of_a_checkpoint_counts(calm, tmp_path, capsys):
  shutil.copytree(calm, tmp_path / 'run')
  run = tmp_path / 'run'
  folder = run / 'checkpoints'
  *older, before, step = checkpoint.steps(folder)
  for other in older:
    shutil.rmtree(folder / str(other))
    checkpoint.checksums(folder, other).unlink()
  seal = checkpoint.checksums(folder, step)
  # Orbax's own mark of a step that is whole says nothing of its content.
  files = [*(file for file in tree(folder / str(step))
             if file.name != checkpoint.COMMITTED), seal]
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
      copy = tmp_path / 'copy'
      if file == seal and damage is None:
        # Without checksums a step is taken, and that is said.
        with pytest.warns(checkpoint.NotVerified):
          assert checkpoint.newest(copy / 'checkpoints') == step
      else:
        assert checkpoint.newest(copy / 'checkpoints') == before, file
        assert (copy / 'damaged' / str(step)).is_dir()
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
  workdir = opened('new')
  disk = tmp_path / 'disk'
  disk.mkdir()
  used = sum(f.stat().st_blocks * 512 for f in tree(calm))
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
  assert int((tmp_path / 'disk.code').read_text()) not in (0, cli.AGAIN)
  text = (tmp_path / 'disk.err').read_text()
  assert 'Traceback' not in text and 'space' in text, text
  processes.check_same(tmp_path / 'out', calm)


def sweep(env, folder, points, corpus, tasks, *more):
  """Starts a sweep of TWO's points; its output goes to <folder>/output.txt."""
  (folder / 'two.py').write_text(TWO % ((str(corpus), str(tasks)), points))
  with open(folder / 'output.txt', 'ab') as output:
    return subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', f'--config={folder}/two.py',
         f'--root={folder}/runs', '--noreport', *more], cwd=processes.ROOT,
        env=env, stdout=output, stderr=output)


def output(folder):
  return (folder / 'output.txt').read_text()


@pytest.mark.slow
def test_two_launchers_of_four_devices_do_sixty_four_points_once(
    env, corpus, tasks, tmp_path):
  """One is killed on the way, with its worker; the other does the rest."""
  env = {**env, 'JAX_NUM_CPU_DEVICES': '4'}
  points = [f'{i + 1}e-5' for i in range(64)]
  more = ('--workers=1', '--pack=8', '--config.train.steps=20',
          '--config.eval.task_names=timbre-v1-full')
  both = [sweep(env, tmp_path, points, corpus, tasks, *more)
          for _ in range(2)]
  runs = tmp_path / 'runs'
  end = time.monotonic() + 1200
  while len(list(runs.glob('*/DONE'))) < 10:
    assert time.monotonic() < end and both[0].poll() is None, output(tmp_path)
    time.sleep(.1)
  (victim,) = [pid for pid in processes.trainers(runs)
               if processes.parent(pid) == both[0].pid]
  both[0].kill()
  os.kill(victim, signal.SIGKILL)
  both[0].wait()
  lost = {w.name for w in records.run_folders(runs)
          if lock_lib.read(w).get('pid') == victim}
  assert both[1].wait(1200) == 0, output(tmp_path)
  assert {records.state(w) for w in records.run_folders(runs)} == {'done'}
  assert len(records.run_folders(runs)) == 65
  trained = [run_id for log in runs.glob('logs/*.txt')
             for line in log.read_text().splitlines()
             if line.startswith('training ')
             for run_id in line.removeprefix('training ').split(', ')]
  twice = {run_id for run_id in trained if trained.count(run_id) > 1}
  assert twice <= lost and len(set(trained)) == 65
  processes.check_nobody_left(tmp_path)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(
    env, server, corpus, tasks, tmp_path):
  command = env, tmp_path, ['1e-3'], corpus, tasks, '--workers=2'
  process, holder = sweep(*command), {}
  end = time.monotonic() + 600
  while holder.get('step', 0) < 90:
    assert time.monotonic() < end and process.poll() is None, output(tmp_path)
    time.sleep(.01)
    # Its baseline takes no step.
    for folder in records.run_folders(tmp_path / 'runs'):
      if lock_lib.read(folder).get('step'):
        workdir, holder = folder, lock_lib.read(folder)
  process.send_signal(signal.SIGINT)
  assert process.wait(120) == cli.AGAIN
  processes.check_nobody_left(tmp_path, seconds=0)
  assert checkpoint.steps(workdir / 'checkpoints')[-1] >= holder['step']
  text = output(tmp_path)
  assert 'Traceback' not in text and 'run the same command to resume' in text
  assert sweep(*command).wait(600) == 0
  undisturbed = tmp_path / 'undisturbed'
  records.open_run(undisturbed, records.load_config(workdir))
  assert processes.worker(server, undisturbed).wait(600) == 0
  processes.check_same(workdir, undisturbed)


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_the_sweep(
    env, corpus, tasks, tmp_path):
  process = sweep(env, tmp_path, ['1e30', '1e-3'], corpus, tasks)
  assert process.wait(600) == 1
  text = output(tmp_path)
  assert 'Traceback' not in text and '1 of 3 runs failed' in text
  states = {}
  for workdir in records.run_folders(tmp_path / 'runs'):
    states.setdefault(records.state(workdir), []).append(workdir)
  assert len(states['done']) == 2
  (bad,) = states['failed']
  assert text.count(f'failed: {bad}: loss ') == 2  # At once, and at the end.
  about = files.read_json(bad / 'FAILED')
  assert about['last_good_step'] == about['step'] - 1 and about['clips']
  # It would diverge again: the same command leaves it, and ends as before.
  assert sweep(env, tmp_path, ['1e30', '1e-3'], corpus, tasks).wait(600) == 1
  assert '1 diverged before' in output(tmp_path)


def test_no_clock_ends_a_lock(tmp_path, monkeypatch):
  held = lock_lib.Lock(tmp_path)
  for moment in (0, 2 ** 31):
    os.utime(tmp_path / 'LEASE', (moment, moment))
    monkeypatch.setattr(time, 'time', lambda: float(moment))
    monkeypatch.setattr(time, 'monotonic', lambda: float(moment))
    assert lock_lib.alive(tmp_path)
    with pytest.raises(lock_lib.LockHeld):
      lock_lib.Lock(tmp_path)
  held.release()
  assert not lock_lib.alive(tmp_path)
