"""Devices that are counted and not opened, slots, limits of a machine."""

import functools
import os
import pathlib
import signal
import subprocess
import time

import pytest

from audiorank import records
from configs import base
from launch import cli
from launch import devices
from launch import grid
from launch.engines import local
from tests import processes
from tests import tiny

SMI = '''#!/bin/sh
echo "0, GPU-a, 81559, {used}"
echo "1, GPU-b, 81559, 4"
'''


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
  """A function that lets two GPUs be listed, the first with MiB in use."""
  def install(used=4):
    (tmp_path / 'nvidia-smi').write_text(SMI.format(used=used))
    (tmp_path / 'nvidia-smi').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  return install


def test_gpus_are_those_that_cuda_would_show(nvidia_smi, tmp_path):
  nvidia_smi()
  found = devices.find({}, str(tmp_path), str(tmp_path))
  assert found.kind == 'gpu' and found.ids == ('0', '1')
  assert found.memory == pytest.approx(81559 * 2 ** 20)
  for visible, ids in (('1', ('1',)), ('GPU-b,0', ('GPU-b', '0')),
                       ('1,-1,0', ('1',)), ('', ())):
    found = devices.find({'CUDA_VISIBLE_DEVICES': visible}, str(tmp_path),
                         str(tmp_path))
    assert found.ids == ids and (found.kind == 'gpu') == bool(ids)
  assert devices.find({'JAX_PLATFORMS': 'cpu'}).kind == 'cpu'


def test_tpu_chips_are_counted_by_their_files(tmp_path):
  pci = tmp_path / 'pci' / '0000:00:05.0'
  pci.mkdir(parents=True)
  (pci / 'vendor').write_text('0x1ae0\n')
  (pci / 'device').write_text('0x0063\n')
  for name in ('accel0', 'accel1', 'accel'):
    (tmp_path / name).touch()
  found = devices.find({}, str(tmp_path), str(tmp_path / 'pci'))
  assert found.kind == 'tpu' and found.ids == ('0', '1')
  assert found.memory == 15.75 * 2 ** 30
  for name in ('accel0', 'accel1'):
    (tmp_path / name).unlink()
  (tmp_path / 'vfio').mkdir()
  for name in ('vfio', '0', '1', '2', '3'):
    (tmp_path / 'vfio' / name).touch()
  found = devices.find({}, str(tmp_path), str(tmp_path / 'pci'))
  assert found.ids == ('0', '1', '2', '3')
  # Other hardware is passed through by vfio as well.
  (pci / 'vendor').write_text('0x8086\n')
  assert devices.find({}, str(tmp_path), str(tmp_path / 'pci')).kind == 'cpu'


def test_eight_gpus_are_eight_slots_that_share_nothing():
  eight = devices.find({devices.PRETENDED: 'gpu:8'})
  slots = devices.slots(eight)
  shown = [s.environment['CUDA_VISIBLE_DEVICES'] for s in slots]
  assert shown == list('01234567')
  shared = devices.slots(eight, per_device=3)
  for device in '01234567':
    shares = [float(s.environment['XLA_PYTHON_CLIENT_MEM_FRACTION'])
              for s in shared if s.ids == (device,)]
    assert len(shares) == 3 and sum(shares) < 1
  (own, *_) = devices.slots(eight, per_device=2, environ={
      'XLA_CLIENT_MEM_FRACTION': '.5'})
  assert own.environment['XLA_CLIENT_MEM_FRACTION'] == '0.250'
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in own.environment
  assert [s.ids for s in devices.slots(eight, size=4)] == [
      tuple('0123'), tuple('4567')]


def test_tpu_slots_are_islands_with_ports_of_their_own():
  four = devices.find({devices.PRETENDED: 'tpu:4:16'})
  slots = devices.slots(four)
  assert [s.environment['TPU_VISIBLE_CHIPS'] for s in slots] == list('0123')
  assert len({s.environment['TPU_PROCESS_PORT'] for s in slots}) == 4
  assert {s.environment['TPU_PROCESS_BOUNDS'] for s in slots} == {'1,1,1'}
  (whole,) = devices.slots(four, size=4)
  assert whole.environment['TPU_CHIPS_PER_PROCESS_BOUNDS'] == '2,2,1'
  with pytest.raises(ValueError, match='takes 3 TPU chips'):
    devices.slots(four, size=3)


@pytest.mark.parametrize('asked, text', [
    ('9', 'there are 8 gpus here'), ('0', "'auto', 'cpu' or a number"),
    ('many', "'auto', 'cpu' or a number")])
def test_devices_that_are_not_there_are_one_line(asked, text):
  eight = devices.find({devices.PRETENDED: 'gpu:8'})
  with pytest.raises(ValueError, match=text):
    devices.choose(eight, asked)
  assert devices.choose(eight, '3').ids == ('0', '1', '2')
  assert devices.choose(eight, 'cpu').kind == 'cpu'


def test_only_a_gpu_can_be_shared():
  for kind in ('tpu:4', 'cpu:1'):
    with pytest.raises(ValueError, match='only a GPU can be shared'):
      devices.slots(devices.find({devices.PRETENDED: kind}), per_device=2)


def test_gpus_without_cuda_in_jax_name_the_extra(monkeypatch):
  monkeypatch.setattr(devices.importlib.util, 'find_spec', lambda name: None)
  for kind, extra in (('gpu', 'cuda'), ('tpu', 'tpu')):
    with pytest.raises(ValueError, match=rf'audiorank\[{extra}\].*--devices='):
      devices.check_software(devices.Devices(kind, ('0',)))
  devices.check_software(devices.Devices('cpu'))


def test_a_gpu_in_use_is_one_line(nvidia_smi, tmp_path):
  nvidia_smi(used=60_000)
  found = devices.find({}, str(tmp_path), str(tmp_path))
  with pytest.raises(devices.Busy, match='gpu 0: 62.9 of 85.5 GB'):
    devices.hold(found)


def test_a_device_is_locked_until_its_last_process_has_ended(tmp_path,
                                                             monkeypatch):
  monkeypatch.setattr(devices.tempfile, 'gettempdir', lambda: str(tmp_path))
  two = devices.find({devices.PRETENDED: 'tpu:2'})
  locks = devices.hold(two)
  with pytest.raises(devices.Busy, match=f'tpu 0: .* process {os.getpid()}'):
    devices.hold(two)
  child = subprocess.Popen(['sleep', '60'],
                           pass_fds=[lock.fileno() for lock in locks])
  for lock in locks:
    # As of a launcher that was killed: its worker lives on for a moment.
    lock.seek(0)
    lock.truncate()
    lock.write('99999999')
    lock.close()
  with pytest.raises(devices.Busy):
    devices.hold(two, wait=.3)
  child.kill()
  child.wait()
  for lock in devices.hold(two):
    lock.close()


def test_cgroup_limits_of_both_versions(tmp_path, monkeypatch):
  monkeypatch.setattr(devices, '_cgroup_folders',
                      lambda root, controller: [tmp_path])
  (tmp_path / 'cpu.max').write_text('100000 100000\n')
  assert devices.cores() == 1
  (tmp_path / 'cpu.max').write_text('max 100000\n')
  assert devices.cores() == len(os.sched_getaffinity(0))
  (tmp_path / 'cpu.max').unlink()
  (tmp_path / 'cpu.cfs_quota_us').write_text('100000\n')
  (tmp_path / 'cpu.cfs_period_us').write_text('100000\n')
  assert devices.cores() == 1
  (tmp_path / 'memory.max').write_text('3000000\n')
  (tmp_path / 'memory.current').write_text('2500000\n')
  (tmp_path / 'memory.stat').write_text('anon 1\ninactive_file 400000\n')
  assert devices.memory() == 900_000
  (tmp_path / 'memory.max').write_text('max\n')
  assert devices.memory() > 1e8


def test_a_large_run_takes_several_devices_and_a_larger_one_none():
  config = base.get_config('en1536-40')
  config.data.root = config.eval.tasks = ''
  small = devices.find({devices.PRETENDED: 'gpu:8:16'})
  run_id = records.run_id(config)
  assert grid.devices_needed(config, small) == config.mesh.fsdp == 2
  assert records.run_id(config) == run_id
  config.mesh.fsdp = 1
  with pytest.raises(ValueError, match='en1536-40: .* fit into 1 of 1 gpus'):
    grid.devices_needed(
        config, devices.find({devices.PRETENDED: 'gpu:1:16'}))


def test_memory_of_a_clip_is_near_what_the_tpu_compiler_says():
  """Peak less state over 16 clips of 10 s in bfloat16. The estimate chooses
  where packing begins; a factor of 1.5 of it costs a retry."""
  for size, remat, bytes_needed in (
      ('en128-12', 'dots', 40e6), ('en768-12', 'dots', 40e6),
      ('en128-12', 'none', 104e6), ('en768-12', 'none', 171e6),
      ('en128-12', 'full', 14e6), ('en768-12', 'full', 14e6)):
    config = base.get_config(size)
    config.model.update({'dtype': 'bfloat16', 'remat': remat})
    estimate = grid.clip_bytes(config)
    assert 1 / 1.5 < estimate / bytes_needed < 1.5


def test_a_cpu_has_a_worker_a_core_as_far_as_memory_goes(monkeypatch):
  configs = {'a': tiny.config('', **{'data.root': 'x'})}
  need = grid.host_bytes(configs['a'])
  monkeypatch.setattr(devices, 'cores', lambda: 8)
  for memory, workers in ((1e12, 8), (3.5 * need, 3), (.5 * need, 1)):
    monkeypatch.setattr(devices, 'memory', lambda memory=memory: memory)
    assert grid.cpu_workers(configs) == workers


LAUNCHER = '''
import os, sys
import jax
from jax._src import xla_bridge
from launch.engines import local
# As if jax had not been told yet.
del os.environ['JAX_PLATFORMS']
jax.config.update('jax_platforms', None)
local.command = lambda name, *arguments: [
    sys.executable, 'tests/stand_in.py', {seconds!r}, {folder!r}, *arguments]
start = local.Place.start

def checked(*arguments):
  assert not xla_bridge.backends_are_initialized()
  assert jax.config.jax_platforms == 'cpu'
  start(*arguments)

local.Place.start = checked
'''
POINTS = '''"""Points that a stand-in does."""
from tests import tiny

def get_config(point='1'):
  return tiny.config('', **{{'opt.lr': 1e-5 * int(point), 'eval.batch': 12,
                            'mesh.data': -1}})

def points():
  return [str(i + 1) for i in range({count})]
'''


@pytest.fixture
def launch(server, corpus, tasks, tmp_path):
  """A function that starts a sweep of stand-ins on pretended devices."""
  return functools.partial(launched, server, corpus, tasks, tmp_path)


def launched(server, corpus, tasks, folder, pretended, count, seconds=.2):
  (folder / 'points.py').write_text(POINTS.format(count=count))
  return server.start(
      [folder / 'output.txt'] * 2, 'sweep', f'--config={folder}/points.py',
      f'--config.data.root={corpus}', f'--config.eval.tasks={tasks}',
      f'--root={folder}/runs', '--noreport',
      before=LAUNCHER.format(seconds=str(seconds), folder=str(folder)),
      **{'TMPDIR': str(folder), devices.PRETENDED: pretended})


def environments(folder):
  return [records.read_json(path)
          for path in sorted(pathlib.Path(folder).glob('[0-9]*.json'))]


def test_no_backend_is_open_when_two_workers_start_on_two_gpus(
    launch, tmp_path):
  launcher = launch('gpu:2', 4, seconds=1.5)
  launcher.wait(300)
  # Nothing was trained, so there is no record to tabulate.
  output = (tmp_path / 'output.txt').read_text()
  assert 'AssertionError' not in output
  assert '5 runs: 5 new' in output and '2 workers on 2 gpus' in output
  got = environments(tmp_path)
  assert sorted(e['CUDA_VISIBLE_DEVICES'] for e in got) == ['0', '1']
  assert all(float(e['XLA_PYTHON_CLIENT_MEM_FRACTION']) < 1 for e in got)
  # The launcher's own JAX_PLATFORMS=cpu is not its workers'.
  assert not any('JAX_PLATFORMS' in e for e in got)
  done = (tmp_path / 'done.txt').read_text().split()
  assert len(done) == len(set(done)) == 5


def stand_ins(folder):
  """Returns the processes that are stand-ins of a folder's sweep."""
  return processes.running('tests/stand_in.py', str(folder))


def until(condition, launcher, seconds=300):
  """Waits until a condition holds, while a launcher runs."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end and launcher.poll() is None
    time.sleep(.05)


def test_one_process_a_tpu_chip_whatever_is_killed(launch, tmp_path):
  """A worker is killed, then the launcher; the same command goes on."""
  launcher = launch('tpu:2', 4, seconds=.5)
  until(lambda: len(stand_ins(tmp_path)) == 2, launcher)
  until((tmp_path / 'done.txt').exists, launcher)
  victim = stand_ins(tmp_path)[0]
  os.kill(victim, signal.SIGKILL)
  until(lambda: len(set(stand_ins(tmp_path)) - {victim}) == 2, launcher)
  launcher.kill()
  launcher.wait()
  # At once, while the workers of the first are leaving.
  assert launch('tpu:2', 4, .1).wait(300) == 0, (
      tmp_path / 'output.txt').read_text()
  assert not stand_ins(tmp_path) and not list(tmp_path.glob('collision*'))
  chips = [e['TPU_VISIBLE_CHIPS'] for e in environments(tmp_path)]
  assert len(chips) >= 4 and set(chips) == {'0', '1'}
  states = {records.state(w) for w in records.run_folders(tmp_path / 'runs')}
  assert states == {'done'}


def test_a_second_launcher_on_the_same_chips_is_one_line(launch, tmp_path):
  first = launch('tpu:2', 2, seconds=600)
  until(lambda: len(stand_ins(tmp_path)) == 2, first)
  second = launch('tpu:2', 2)
  assert second.wait(300) == 1
  line = (tmp_path / 'output.txt').read_text().splitlines()[-1]
  assert line == (f'error: tpu 0: in use by process {first.pid} on this '
                  'machine: expected a free device')
  first.send_signal(signal.SIGINT)
  assert first.wait(300) == cli.AGAIN and not stand_ins(tmp_path)


LOADER = pathlib.Path('/lib64/ld-linux-x86-64.so.2')


@pytest.mark.skipif(not LOADER.exists(), reason='no glibc')
def test_a_worker_on_a_cpu_asks_for_huge_pages():
  slot = devices.Slot('cpu-0', (), None, {})
  env = local.environment(slot, {'LC_ALL': 'C'})
  listed = subprocess.run([LOADER, '--list-tunables'], env=env, text=True,
                          capture_output=True).stdout
  # An unknown tunable or a value out of bounds would be ignored silently.
  assert 'glibc.malloc.hugetlb: 0x1 ' in listed
  own = {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=2'}
  assert local.environment(slot, own)['GLIBC_TUNABLES'] == (
      own['GLIBC_TUNABLES'])
