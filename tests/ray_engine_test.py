"""The Ray engine on loopback: trainers, Ray workers and nodes killed, a faked
TPU pod that loses a slice; and, without Ray, what it makes of an end."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from audiorank import checksums
from audiorank import lease
from audiorank import records
from audiorank import synth
from launch import pool
from launch import ray_engine
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
  c.monitor.update({'clips': 48, 'crop_seconds': .5, 'readings': 2,
                    'first': 5, 'batch': 8, 'valid_clips': 8})
  c.checkpoint.update({'every': 50, 'keep': 100_000})
  c.eval.update({'protocol': 'logistic', 'batch': 12})
  return c

def points():
  return list('%s')
'''


@pytest.fixture(scope='module')
def env(tmp_path_factory):
  return processes.environment(tmp_path_factory.mktemp('compiled'))


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tasks')
  synth.write_tasks(folder, 0, clips_per_task=(24, 12, 12),
                    names=['timbre'], workers=1, progress=False)
  return folder / 'tasks'


def sweep(env, folder, corpus, tasks, *more, points='12', steps=400):
  """Starts a sweep by Ray; its output goes to <folder>/said.txt."""
  (folder / 'few.py').write_text(POINTS % (steps, points))
  with open(folder / 'said.txt', 'ab') as said:
    return subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', '--engine=ray',
         f'--config={folder}/few.py', f'--config.data.root={corpus}',
         f'--config.eval.tasks={tasks}', f'--root={folder}/runs',
         '--noreport', *more], cwd=processes.ROOT, env=env, stdout=said,
        stderr=said)


def training(folder, job, past=5, but=(), timeout=900):
  """Waits for a run that trains past a step; returns (folder, its lease)."""
  end = time.monotonic() + timeout
  while time.monotonic() < end:
    assert job.poll() is None, (folder / 'said.txt').read_text()
    for workdir in records.run_folders(folder / 'runs'):
      told = lease.read(workdir)
      if (told.get('step', 0) >= past and told['pid'] not in but
          and lease.alive(workdir)):
        return workdir, told
    time.sleep(.05)
  raise AssertionError((folder / 'said.txt').read_text())


def finished(folder, job, count, timeout=900):
  """Waits for a sweep; all its runs must be done and nobody be left."""
  assert job.wait(timeout) == 0, (folder / 'said.txt').read_text()
  states = [records.state(w) for w in records.run_folders(folder / 'runs')]
  assert states == ['done'] * count
  processes.check_nobody_left(folder)


def undisturbed(env, workdir, folder):
  """Asserts that a run ended as it does when it is left alone."""
  records.open_run(folder, records.load_config(workdir))
  assert processes.worker(env, folder).wait(600) == 0
  processes.check_same(workdir, folder)


@with_ray
@pytest.mark.slow
def test_a_trainer_and_a_ray_worker_killed_cost_nothing(
    env, corpus, tasks, tmp_path):
  job = sweep(env, tmp_path, corpus, tasks, '--address=local')
  hit, first = training(tmp_path, job, past=70)
  os.kill(first['pid'], signal.SIGKILL)
  _, second = training(tmp_path, job, past=70, but=[first['pid']])
  os.kill(processes.parent(second['pid']), signal.SIGKILL)
  finished(tmp_path, job, 3)
  undisturbed(env, hit, tmp_path / 'x')
  again = sweep(env, tmp_path, corpus, tasks, '--address=local')
  finished(tmp_path, again, 3)
  assert '3 runs, 3 done before' in (tmp_path / 'said.txt').read_text()


@with_ray
@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(
    env, corpus, tasks, tmp_path):
  job = sweep(env, tmp_path, corpus, tasks, '--address=local')
  hit, told = training(tmp_path, job, past=50)
  job.send_signal(signal.SIGINT)
  assert job.wait(120) == pool.AGAIN
  saved = checksums.steps(hit / 'checkpoints')[-1]
  assert saved >= told['step'] and not processes.trainers(tmp_path)


@pytest.fixture
def cluster(env, monkeypatch):
  """A cluster of loopback nodes; its head has no cores."""
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  cluster_utils = pytest.importorskip('ray.cluster_utils')
  made = cluster_utils.Cluster(initialize_head=True, head_node_args={
      'num_cpus': 0, 'object_store_memory': ray_engine.STORE,
      'include_dashboard': False})
  yield made
  made.shutdown()


def node(cluster, **more):
  return cluster.add_node(object_store_memory=ray_engine.STORE, **more)


@with_ray
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_a_lost_node_s_run_goes_on_elsewhere(
    env, corpus, tasks, tmp_path, cluster):
  nodes = [node(cluster, num_cpus=1) for _ in range(2)]
  job = sweep(env, tmp_path, corpus, tasks, f'--address={cluster.address}')
  hit, told = training(tmp_path, job, past=70)
  raylet = lose(told['pid'])
  (lost,) = [n for n in nodes
             if n.all_processes['raylet'][0].process.pid == raylet]
  finished(tmp_path, job, 3)
  cluster.remove_node(lost, allow_graceful=False)
  undisturbed(env, hit, tmp_path / 'x')


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
  hit, told = training(tmp_path, job, past=70)
  raylet = lose(told['pid'])
  (lost,) = [n for n in sum(slices.values(), [])
             if n.all_processes['raylet'][0].process.pid == raylet]
  _, told = training(tmp_path, job, past=70, but=[told['pid']])
  assert processes.parent(processes.parent(told['pid'])) not in [
      n.all_processes['raylet'][0].process.pid for hosts in slices.values()
      if lost in hosts for n in hosts]
  finished(tmp_path, job, 2)
  described = records.read_json(hit / 'DONE')
  assert described['run_id'] == hit.name


@pytest.mark.parametrize('codes, meant', [
    ([0], 0), ([0, 0], 0), ([42, 42], 42), ([1], 1), ([3, 0], 3),
    ([None], None), ([1, None], None), ([-6, 1], -6), ([137, 42, 0], 137),
    ([42, 1], 1)])
def test_what_the_hosts_of_a_run_say_together(codes, meant):
  assert ray_engine.verdict(codes) == meant


def test_preemptions_and_deaths_have_budgets_of_their_own(
    tmp_path, monkeypatch):
  (tmp_path / 'r').mkdir()
  job = pool.Job('r', 1.)
  started = ray_engine.Started(job, [0], None)
  tries, failed = {'r': pool.Tries()}, {}

  def ended(code, hung=0):
    waiting = []
    monkeypatch.setattr(ray_engine, 'outcome', lambda _: code)
    ray_engine.settle(tmp_path, started, hung, waiting, tries, failed)
    return waiting == [job]

  assert all(ended(code) for code in [None, pool.AGAIN] * 50)
  assert tries['r'].preempted == 100 and tries['r'].deaths == 0
  assert all(ended(-9) for _ in range(pool.DEATHS - 1)) and not failed
  assert not ended(0, hung=1)
  assert 'without progress' in failed.pop('r')
  tries['r'].preempted = ray_engine.PREEMPTIONS - 1
  assert not ended(None) and failed == {'r': 'preempted 10000 times'}


def test_without_ray_it_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  with pytest.raises(ValueError, match='pip install'):
    ray_engine.connect('local')
