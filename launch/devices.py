"""Finds the devices of this machine without opening any, and makes slots.

Opening a device here would take it from the workers: a TPU chip can be used by
one process only, and jax allocates most of a GPU's memory. So devices are
counted as the system lists them. A slot gives a worker some of them in its
environment. Locks prevent two launchers of a user from using the same device.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fcntl
import glob
import importlib.util
import os
import pathlib
import pkgutil
import re
import socket
import subprocess
import tempfile
import time
from typing import IO
from typing import NamedTuple

# The variable for pretended devices, such as gpu:8 or tpu:4:16 (GB each), for
# tests and for trying a sweep. Workers then compute on the CPU.
PRETENDED = 'AUDIORANK_DEVICES'
GPU_SHARE = .9  # Of a GPU's memory, for all workers on it together.
IN_USE = .1  # A GPU with more of its memory in use has another process.
RELEASE = 30.  # Seconds for the workers of a dead launcher to save and end.
GOOGLE = '0x1ae0'  # PCI vendor of TPU chips.
# PCI device of a TPU chip -> its name, as jax's hardware_utils lists them.
TPU_DEVICES = {'0x005e': 'v4', '0x0062': 'v5p', '0x0063': 'v5e',
               '0x006f': 'v6e'}
# Number of chips of a process -> their arrangement on the host.
TPU_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}
EXTRAS = {'gpu': 'cuda', 'tpu': 'tpu'}


class Devices(NamedTuple):
  """Devices of one kind on this machine.

  kind: 'cpu', 'gpu' or 'tpu'. There is one 'cpu', which is shared.
  ids: as for CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS.
  memory: bytes of one device, or None if unknown.
  used: bytes of each that are in use already.
  pretended: whether they come from PRETENDED.
  """
  kind: str
  ids: tuple[str, ...] = ()
  memory: float | None = None
  used: tuple[float, ...] = ()
  pretended: bool = False


class Slot(NamedTuple):
  """The devices, cores and environment of one worker.

  name: such as gpu-0, also of its log.
  ids: of its devices; () on a CPU.
  cores: that it may use, or None for all.
  environment: variables to set; None removes one.
  """
  name: str
  ids: tuple[str, ...]
  cores: frozenset[int] | None
  environment: dict[str, str | None]


def find(environ: Mapping[str, str] = os.environ, dev: str = '/dev',
         pci: str = '/sys/bus/pci/devices') -> Devices:
  """Returns the devices that jax would use, without opening them.

  Args:
    environ: JAX_PLATFORMS and CUDA_VISIBLE_DEVICES restrict the result.
    dev, pci: folders in which the system lists devices.

  Raises:
    ValueError: AUDIORANK_DEVICES is not of its form.
  """
  if environ.get(PRETENDED):
    return _pretended(environ[PRETENDED])
  # jax computes on the first platform of the list.
  platform = environ.get('JAX_PLATFORMS', '').split(',')[0]
  if platform in ('', 'tpu'):
    # By listing device files: opening a device here would take it from the
    # workers.
    chips = _tpu_chips(dev, pci)
    if chips.ids:
      return chips
  if platform in ('', 'cuda', 'gpu'):
    gpus = _gpus(environ)
    if gpus.ids:
      return gpus
  return Devices('cpu')


def _pretended(text: str) -> Devices:
  """Returns the devices of the variable PRETENDED."""
  form = re.fullmatch(r'(cpu|gpu|tpu):(\d+)(?::(\d+))?', text)
  if not form:
    raise ValueError(f'{PRETENDED}={text!r}: expected such as gpu:8 or '
                     'tpu:4:16 (GB each)')
  if form[1] == 'cpu':
    return Devices('cpu')
  ids = tuple(str(i) for i in range(int(form[2])))
  memory = None
  if form[3]:
    memory = 1e9 * float(form[3])
  return Devices(form[1], ids, memory, (0.,) * len(ids), True)


def _gpus(environ: Mapping[str, str]) -> Devices:
  """Returns the NVIDIA GPUs in CUDA_VISIBLE_DEVICES, by default all."""
  query = '--query-gpu=index,uuid,memory.total,memory.used'
  try:
    listing = subprocess.run(
        ['nvidia-smi', query, '--format=csv,noheader,nounits'],
        capture_output=True, text=True, timeout=30, check=True).stdout
  except (OSError, subprocess.SubprocessError):
    return Devices('gpu')
  # Lines of another form are warnings.
  rows = [[cell.strip() for cell in line.split(',')]
          for line in listing.splitlines() if line.count(',') == 3]
  by_id = {}
  for row in rows:
    # CUDA_VISIBLE_DEVICES may name a GPU by its index or by its UUID.
    by_id[row[0]] = by_id[row[1]] = row
  visible = environ.get('CUDA_VISIBLE_DEVICES')
  if visible is None:
    ids = [row[0] for row in rows]
  else:
    ids = []
    for name in visible.split(','):
      # As in CUDA: the list ends at the first invalid device.
      if not name.strip() or name.strip() == '-1':
        break
      ids.append(name.strip())
  # nvidia-smi counts in MiB.
  mib = 2 ** 20
  # The smallest: every slot must hold the same runs.
  total = [_number(by_id[i][2]) * mib for i in ids if i in by_id]
  # nvidia-smi does not list parts of a GPU. They count as free.
  free = ['', '', '', '0']
  used = [_number(by_id.get(i, free)[3]) * mib for i in ids]
  return Devices('gpu', tuple(ids), min(total, default=0.) or None,
                 tuple(used))


def _number(text: str) -> float:
  """Returns a number that nvidia-smi printed; '[N/A]' is 0."""
  try:
    return float(text)
  except ValueError:
    return 0.


def _tpu_chips(dev: str, pci: str) -> Devices:
  """Returns the TPU chips of this host."""
  # They are /dev/accel*, or /dev/vfio/* if the PCI bus has devices of Google;
  # other machines use vfio for other devices.
  names = []
  for vendor in sorted(glob.glob(f'{pci}/*/vendor')):
    if pathlib.Path(vendor).read_text().strip() == GOOGLE:
      device = pathlib.Path(vendor).with_name('device').read_text().strip()
      names.append(TPU_DEVICES.get(device, ''))
  files = glob.glob(f'{dev}/accel[0-9]*')
  if not files and names:
    files = glob.glob(f'{dev}/vfio/[0-9]*')
  memory = None
  if names and names[0]:
    from audiorank import flops
    memory = flops.CHIPS[names[0]].memory
  ids = tuple(str(i) for i in range(len(files)))
  return Devices('tpu', ids, memory, (0.,) * len(ids))


def choose(devices: Devices, asked: str) -> Devices:
  """Returns the devices for the flag `--devices`.

  Args:
    devices: those of this machine.
    asked: 'auto', 'cpu' or a number of devices.

  Raises:
    ValueError: none of these, or more devices than there are.
  """
  if asked == 'auto':
    return devices
  if asked == 'cpu':
    return Devices('cpu')
  if not asked.isdigit() or int(asked) < 1:
    raise ValueError(f"--devices={asked}: expected 'auto', 'cpu' or a number "
                     'of devices (CUDA_VISIBLE_DEVICES chooses which)')
  number = int(asked)
  if number > len(devices.ids):
    there = f'{len(devices.ids)} {devices.kind}s'
    if devices.kind == 'cpu':
      there = 'no GPU or TPU'
    raise ValueError(f'--devices={asked}: there are {there} here; on a CPU '
                     '--workers sets how many runs train at once')
  return devices._replace(ids=devices.ids[:number],
                          used=devices.used[:number])


def check_software(devices: Devices) -> None:
  """Raises ValueError if the installed jax cannot use the devices."""
  if devices.kind == 'cpu' or devices.pretended:
    return
  if devices.kind == 'tpu':
    usable = importlib.util.find_spec('libtpu') is not None
  else:
    plugins = importlib.util.find_spec('jax_plugins')
    # Without importing the plugin, which would open the devices.
    usable = plugins is not None and any(
        module.name.startswith('xla_cuda') for module in
        pkgutil.iter_modules(plugins.submodule_search_locations))
  if not usable:
    raise ValueError(
        f'{len(devices.ids)} {devices.kind}s here, but the installed jax '
        "cannot use them: pip install "
        f"'audiorank[{EXTRAS[devices.kind]}]', or --devices=cpu")


class Busy(ValueError):
  """Another process uses a device."""


def hold(devices: Devices, wait: float = RELEASE) -> list[IO[str]]:
  """Locks devices against other launchers; returns the open lock files.

  Workers inherit them, so a device stays locked until the last process on it
  has ended, even if it was killed.

  Args:
    devices: to be locked.
    wait: seconds for the workers of a dead launcher to end.

  Raises:
    Busy: another process uses one; names it.
  """
  if devices.kind == 'cpu':
    return []
  for device, used in zip(devices.ids, devices.used):
    if devices.memory and used > IN_USE * devices.memory:
      raise Busy(
          f'gpu {device}: {used / 1e9:.1f} of {devices.memory / 1e9:.1f} GB '
          'are in use by another process: expected a free device '
          '(CUDA_VISIBLE_DEVICES chooses which)')
  if devices.kind == 'tpu' and not devices.pretended:
    _check_chips_free()
  folder = pathlib.Path(tempfile.gettempdir(), f'audiorank-{os.getuid()}')
  # Of this user alone: others cannot lock what they cannot write.
  folder.mkdir(mode=0o700, exist_ok=True)
  locks: list[IO[str]] = []
  end = time.monotonic() + wait
  for device in devices.ids:
    name = f'{devices.kind}-{re.sub("[^A-Za-z0-9-]", "_", device)}.lock'
    # Not emptied: its content names the process that has the lock.
    file = open(folder / name, 'a+', encoding='utf-8')
    locks.append(file)
    while not _locked(file):
      file.seek(0)
      holder = file.read().strip()
      # If the launcher is dead, its workers save and end within seconds.
      if _alive(holder) or time.monotonic() > end:
        # All or none: a launcher with some of them would block the others.
        for lock in locks:
          lock.close()
        raise Busy(f'{devices.kind} {device}: in use by process {holder} on '
                   'this machine: expected a free device')
      time.sleep(.1)
    # Names the launcher for messages; the lock itself is the kernel's.
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
  return locks


def _locked(file: IO[str]) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _alive(pid: str) -> bool:
  return pid.isdigit() and pathlib.Path('/proc', pid).exists()


def _check_chips_free() -> None:
  """Raises Busy if a process of this machine has opened a TPU chip."""
  for link in glob.glob('/proc/[0-9]*/fd/*'):
    # Processes of other users cannot be read, and are passed over.
    with contextlib.suppress(OSError):
      target = os.readlink(link)
      if re.fullmatch(r'/dev/(accel|vfio/)\d+', target):
        raise Busy(f'{target}: in use by process {link.split("/")[2]}: a TPU '
                   'chip serves one process at a time')


def slots(devices: Devices, size: int = 1, per_device: int = 1,
          workers: int = 1,
          environ: Mapping[str, str] = os.environ) -> list[Slot]:
  """Returns the slots of this machine, each with its part of the devices.

  Args:
    devices: what to divide.
    size: devices of a slot.
    per_device: workers that share a GPU.
    workers: slots on a CPU.
    environ: the environment that the workers start from.

  Raises:
    ValueError: per_device on what cannot be shared; no slot of that size.
  """
  if per_device > 1 and devices.kind != 'gpu':
    why = {'tpu': 'a TPU chip serves one process',
           'cpu': '--workers sets how many run at once on a CPU'}
    raise ValueError(f'--per_device={per_device}: only a GPU can be shared: '
                     f'{why[devices.kind]}')
  if per_device > 1 and size > 1:
    raise ValueError(f'--per_device={per_device}: runs here take {size} '
                     'devices each')
  groups: list[tuple[str, ...]] = [()] * workers
  if devices.kind != 'cpu':
    ids = devices.ids
    if size > len(ids):
      raise ValueError(f'a run takes {size} {devices.kind}s, there are '
                       f'{len(ids)}')
    # Neighbours together; devices that are left over stay idle.
    groups = [ids[i:i + size] for i in range(0, len(ids) - size + 1, size)
              for _ in range(per_device)]
  out = []
  for number, (group, cores) in enumerate(zip(groups,
                                              core_groups(len(groups)))):
    settings: dict[str, str | None] = {}
    if cores:
      settings = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'),
                               str(len(cores)))
    if devices.kind == 'gpu':
      settings |= _gpu_settings(group, per_device, environ)
    elif devices.kind == 'tpu':
      settings |= _tpu_settings(group)
    if not devices.pretended:
      # With an explicit platform a worker without its device fails at once,
      # instead of computing on the CPU.
      settings['JAX_PLATFORMS'] = {
          'cpu': 'cpu', 'gpu': 'cuda,cpu', 'tpu': 'tpu,cpu'}[devices.kind]
    name = f'{devices.kind}-{number}'
    if devices.kind != 'cpu':
      cores = None  # It mostly waits for its device, so it is not pinned.
    out.append(Slot(name, tuple(group), cores, settings))
  return out


def _gpu_settings(ids: Sequence[str], per_device: int,
                  environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables that give a worker its GPUs and share of memory."""
  # jaxlib has two names for the share, and refuses to have both set.
  name = 'XLA_CLIENT_MEM_FRACTION'
  if not environ.get(name):
    name = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  share = float(environ.get(name) or GPU_SHARE)
  # In nvidia-smi's order, from which the ids come: CUDA's own order has the
  # fastest first.
  return {'CUDA_DEVICE_ORDER': 'PCI_BUS_ID',
          'CUDA_VISIBLE_DEVICES': ','.join(ids),
          name: f'{share / per_device:.3f}'}


def _tpu_settings(ids: Sequence[str]) -> dict[str, str]:
  """Returns the variables with which some chips are a TPU by themselves.

  Raises:
    ValueError: there is no TPU with so many chips.
  """
  # jax's tests with several processes set the same variables. The last two
  # prevent a host of a slice from looking for the other hosts.
  if len(ids) not in TPU_BOUNDS:
    raise ValueError(f'a run takes {len(ids)} TPU chips: expected one of '
                     f'{", ".join(map(str, TPU_BOUNDS))}')
  # Port 0 has the system choose a free one.
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  # By itself libtpu allows one process on a host.
  return {'TPU_VISIBLE_CHIPS': ','.join(ids),
          'TPU_PROCESS_BOUNDS': '1,1,1',
          'TPU_CHIPS_PER_PROCESS_BOUNDS': TPU_BOUNDS[len(ids)],
          'TPU_PROCESS_PORT': str(port),
          'TPU_PROCESS_ADDRESSES': f'localhost:{port}',
          'CLOUD_TPU_TASK_ID': '0',
          'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
          'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}


def core_groups(count: int) -> list[frozenset[int] | None]:
  """Returns the cores of each of `count` workers; None if not on Linux."""
  if not hasattr(os, 'sched_getaffinity'):
    return [None] * count
  mine = sorted(os.sched_getaffinity(0))
  share = max(1, len(mine) // max(count, 1))
  # With more workers than cores they start again at the first core.
  return [frozenset(mine[i * share % len(mine):][:share])
          for i in range(count)]


def cores(cgroups: str = '/sys/fs/cgroup') -> int:
  """Returns the number of cores for this process, by affinity and cgroups."""
  # A container may see all cores of its host, but get the time of only some.
  if hasattr(os, 'sched_getaffinity'):
    count = len(os.sched_getaffinity(0))
  else:
    count = os.cpu_count() or 1
  for folder in _cgroup_folders(cgroups, 'cpu'):
    quota, period = _cpu_quota(folder)
    if quota > 0:
      count = min(count, max(1, round(quota / period)))
  return count


def _cpu_quota(folder: pathlib.Path) -> tuple[float, float]:
  """Returns (CPU time, wall time) of a cgroup's quota; CPU time 0 for none."""
  # Version 2 of cgroups first, then version 1.
  with contextlib.suppress(OSError, ValueError):
    quota, period = (folder / 'cpu.max').read_text().split()
    if quota == 'max':
      return 0., 1.
    return float(quota), float(period)
  with contextlib.suppress(OSError, ValueError):
    return (float((folder / 'cpu.cfs_quota_us').read_text()),
            float((folder / 'cpu.cfs_period_us').read_text()))
  return 0., 1.


def memory(cgroups: str = '/sys/fs/cgroup') -> float:
  """Returns the free memory of this machine or container, in bytes."""
  try:
    text = pathlib.Path('/proc/meminfo').read_text()
  except OSError:
    return float('inf')
  free = 1024. * sum(
      int(size) for size in re.findall(r'MemAvailable:\s*(\d+)', text))
  for folder in _cgroup_folders(cgroups, 'memory'):
    for limit, used in (('memory.max', 'memory.current'),
                        ('memory.limit_in_bytes', 'memory.usage_in_bytes')):
      # 'max' means no limit, and is not a number.
      with contextlib.suppress(OSError, ValueError):
        free = min(free, int((folder / limit).read_text())
                   - int((folder / used).read_text()) + _file_cache(folder))
  return max(free, 0.)


def _file_cache(folder: pathlib.Path) -> int:
  """Returns the bytes of a cgroup's file cache that the kernel can free."""
  with contextlib.suppress(OSError):
    stat = (folder / 'memory.stat').read_text()
    # Version 1 has a second line, total_, which counts the groups below.
    sizes = re.findall(r'^(?:total_)?inactive_file (\d+)', stat, re.M)
    return max(map(int, sizes), default=0)
  return 0


def _cgroup_folders(cgroups: str, controller: str) -> list[pathlib.Path]:
  """Returns the folders of this process's cgroup and of its parents."""
  # Version 2 has one tree for all limits, version 1 one per controller. In a
  # container the path may not exist; then the root is the container's own.
  try:
    lines = pathlib.Path('/proc/self/cgroup').read_text().splitlines()
  except OSError:
    return []
  out = []
  for line in lines:
    number, names, path = line.split(':', 2)
    if number == '0':
      top = pathlib.Path(cgroups)
    elif controller in names.split(','):
      top = pathlib.Path(cgroups, controller)
    else:
      continue
    inner = top / path.strip('/')
    # No further up than where the tree is mounted.
    out += [folder for folder in (inner, *inner.parents)
            if folder == top or top in folder.parents]
  return out
