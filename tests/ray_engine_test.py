"""The Ray engine on loopback: workers, Ray workers and nodes killed, a faked
TPU pod that loses a slice; and, without Ray, what it makes of an end."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from audiorank import checkpoint
from audiorank import files
from audiorank import records
from audiorank import synth
from audiorank.records import lock as lock_lib
from launch import cli
from launch import run_queue
from launch.engines import ray_cluster
from tests import processes

with_ray = pytest.mark.skipif(
    importlib.util.find_spec('ray') is None, reason='Ray is not installed')

POINTS = '''"""A few points."""
from configs import base

def get_config(point='1'):
  c = base.get_config('en32-2')
  c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
  c.model.target_frames = 104
  c.data.update({'crop_seconds': .5, 'valid_fraction': .2, 'threads': 1})
  c.train.update({'steps': %d, 'batch': 8, 'log_every': 20})
  c.opt.update({'lr': 1e-3 * int(point), 'warmup': 2})
  c.monitor.update({'clips': 48, 'crop_seconds': .5, 'num_evals': 2,
                    'first_eval': 5, 'batch': 8, 'valid_clips': 8})
  c.checkpoint.update({'save_every': 50, 'keep_every': 100_000})
  c.eval.update({'protocol': 'logistic', 'batch': 12})
  return c

def points():
  return list('%s')
'''


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tasks')
  synth.write_tasks(folder, 0, clips_per_task=(24, 12, 12),
                    names=['timbre'], workers=1, progress=False)
  return folder / 'tasks'


def sweep(env, folder, corpus, tasks, *more, points='12', steps=400):
  """Starts a sweep by Ray; its output goes to <folder>/output.txt."""
  (folder / 'few.py').write_text(POINTS % (steps, points))
  with open(folder / 'output.txt', 'ab') as output:
    return subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', '--engine=ray',
         f'--config={folder}/few.py', f'--config.data.root={corpus}',
         f'--config.eval.tasks={tasks}', f'--root={folder}/runs',
         '--noreport', *more], cwd=processes.ROOT, env=env, stdout=output,
        stderr=output)


def training(folder, job, past=5, but=(), timeout=900):
  """Waits for a run that trains past a step; returns (folder, holder)."""
  end = time.monotonic() + timeout
  while time.monotonic() < end:
    assert job.poll() is None, (folder / 'output.txt').read_text()
    for workdir in records.run_folders(folder / 'runs'):
      holder = lock_lib.read(workdir)
      if (holder.get('step', 0) >= past and holder['pid'] not in but
          and lock_lib.alive(workdir)):
        return workdir, holder
    time.sleep(.05)
  raise AssertionError((folder / 'output.txt').read_text())


def finished(folder, job, count, timeout=900):
  """Waits for a sweep; all its runs must be done and nobody be left."""
  assert job.wait(timeout) == 0, (folder / 'output.txt').read_text()
  states = [records.state(w) for w in records.run_folders(folder / 'runs')]
  assert states == ['done'] * count
  processes.check_nobody_left(folder)


def undisturbed(server, workdir, folder):
  """Asserts that a run ended as it does when it is left alone."""
  records.open_run(folder, records.load_config(workdir))
  assert processes.worker(server, folder).wait(600) == 0
  processes.check_same(workdir, folder)


@with_ray
@pytest.mark.slow
def test_a_worker_and_a_ray_worker_killed_cost_nothing(
    env, server, corpus, tasks, tmp_path):
  job = sweep(env, tmp_path, corpus, tasks, '--address=local')
  hit, first = training(tmp_path, job, past=70)
  os.kill(first['pid'], signal.SIGKILL)
  _, second = training(tmp_path, job, past=70, but=[first['pid']])
  os.kill(processes.parent(second['pid']), signal.SIGKILL)
  finished(tmp_path, job, 3)
  undisturbed(server, hit, tmp_path / 'x')
  again = sweep(env, tmp_path, corpus, tasks, '--address=local')
  finished(tmp_path, again, 3)
  assert '3 known, 3 done before' in (tmp_path / 'output.txt').read_text()


@with_ray
@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(
    env, corpus, tasks, tmp_path):
  job = sweep(env, tmp_path, corpus, tasks, '--address=local')
  hit, holder = training(tmp_path, job, past=50)
  job.send_signal(signal.SIGINT)
  assert job.wait(120) == cli.AGAIN
  saved = checkpoint.steps(hit / 'checkpoints')[-1]
  assert saved >= holder['step'] and not processes.trainers(tmp_path)


@pytest.fixture
def cluster(env, monkeypatch):
  """A cluster of loopback nodes; its head has no cores."""
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  cluster_utils = pytest.importorskip('ray.cluster_utils')
  loopback = cluster_utils.Cluster(initialize_head=True, head_node_args={
      'num_cpus': 0, 'object_store_memory': ray_cluster.STORE,
      'include_dashboard': False})
  yield loopback
  loopback.shutdown()


def node(cluster, **more):
  return cluster.add_node(object_store_memory=ray_cluster.STORE, **more)


@with_ray
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_a_lost_node_s_run_goes_on_elsewhere(
    env, server, corpus, tasks, tmp_path, cluster):
  nodes = [node(cluster, num_cpus=1) for _ in range(2)]
  job = sweep(env, tmp_path, corpus, tasks, f'--address={cluster.address}')
  hit, holder = training(tmp_path, job, past=70)
  raylet = lose(holder['pid'])
  (lost,) = [n for n in nodes
             if n.all_processes['raylet'][0].process.pid == raylet]
  finished(tmp_path, job, 3)
  cluster.remove_node(lost, allow_graceful=False)
  undisturbed(server, hit, tmp_path / 'x')


def lose(pid):
  """Kills the machine that a trainer is on; returns its raylet's process.

  Of a raylet alone the trainers would go on.
  """
  raylet = processes.parent(processes.parent(pid))
  for one in [raylet, *processes.descendants(raylet)]:
    os.kill(one, signal.SIGKILL)
  return raylet


def host(cluster, name, rank):
  """One of the two hosts of a TPU v4 slice of 2x2x2, as Ray labels them."""
  pod = {'TPU_NAME': name, 'TPU_WORKER_ID': str(rank),
         'TPU_TOPOLOGY': '2x2x2', 'TPU_ACCELERATOR_TYPE': 'v4-16',
         'JAX_NUM_CPU_DEVICES': '2'}
  return node(
      cluster, num_cpus=2, env_vars=pod,
      resources={'TPU': 4, 'accelerator_type:TPU-V4': 1,
                 **({} if rank else {'TPU-v4-16-head': 1})},
      labels={'ray.io/tpu-slice-name': name,
              'ray.io/tpu-worker-id': str(rank),
              'ray.io/tpu-topology': '2x2x2', 'ray.io/tpu-pod-type': 'v4-16'})


@with_ray
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_a_lost_slice_s_run_goes_on_on_another(
    env, corpus, tasks, tmp_path, cluster):
  slices = {name: [host(cluster, name, rank) for rank in range(2)]
            for name in ('first', 'second')}
  job = sweep(env, tmp_path, corpus, tasks, f'--address={cluster.address}',
              '--slice=v4:2x2x2', points='1', steps=400)
  hit, holder = training(tmp_path, job, past=70)
  raylet = lose(holder['pid'])
  (lost,) = [n for n in sum(slices.values(), [])
             if n.all_processes['raylet'][0].process.pid == raylet]
  _, holder = training(tmp_path, job, past=70, but=[holder['pid']])
  assert processes.parent(processes.parent(holder['pid'])) not in [
      n.all_processes['raylet'][0].process.pid for hosts in slices.values()
      if lost in hosts for n in hosts]
  finished(tmp_path, job, 2)
  assert files.read_json(hit / 'DONE')['run_id'] == hit.name


@pytest.mark.parametrize('codes, meant', [
    ([0], 0), ([0, 0], 0), ([42, 42], 42), ([1], 1), ([3, 0], 3),
    ([None], None), ([1, None], None), ([-6, 1], -6), ([137, 42, 0], 137),
    ([42, 1], 1)])
def test_what_the_hosts_of_a_run_mean_together(codes, meant):
  assert ray_cluster.exit_code(codes) == meant


@pytest.fixture
def ended(tmp_path, monkeypatch):
  """A function that settles a worker, or a run on a slice, with an exit code;
  returns the runs that it left over."""
  files.write_json(tmp_path / 'sweep.json', {
      'runs': {'r': run_queue.Entry(1., 9, 'g', 'p', 'm')._asdict()}})
  (tmp_path / 'r').mkdir()
  files.write_json(tmp_path / 'r' / 'config.json', {})
  board, errors = run_queue.Board(tmp_path), ray_cluster.Errors()

  def settle(code, hung=0, run_id=''):
    left_over = set()
    monkeypatch.setattr(ray_cluster, 'outcome', lambda task: code)
    ray_cluster.settle(board, ray_cluster.Started([0], None, run_id), hung,
                       left_over, errors)
    return left_over

  return settle


def test_lost_machines_are_no_fault_and_ends_without_progress_are(ended):
  for code in [None, cli.AGAIN] * 50:
    assert ended(code) == set()
  assert ended(0) == {'r'}
  assert ended(0, run_id='r') == set()
  for _ in range(run_queue.DEATHS - 1):
    ended(-9)
  with pytest.raises(OSError, match='5 workers ended without progress'):
    ended(0, hung=1)


def test_a_run_that_cannot_begin_on_a_slice_has_failed(ended, tmp_path):
  ended(3, run_id='r')
  assert files.read_json(tmp_path / 'r' / 'FAILED')['error'] == (
      'launch.train ended with exit code 3')


@pytest.mark.parametrize('text', ['v4', ':2x2', 'v4:'])
def test_a_slice_has_a_machine_and_sides(text):
  with pytest.raises(ValueError, match='expected such as v4:2x2x2'):
    ray_cluster.needs(1, 0, text)
  assert ray_cluster.needs(1, 0, 'v4:2x2x2').topology == '2x2x2'


def test_without_ray_it_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  with pytest.raises(ValueError, match='pip install'):
    ray_cluster.connect('local')
