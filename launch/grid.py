"""Turns the points of a config file into the runs of a sweep, and checks them.

No device is opened here, because the workers need them.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import inspect
import os
import pathlib
from types import ModuleType
from typing import Any

from audiorank import baselines
from audiorank import config as config_lib
from audiorank import evaluate
from audiorank import files
from audiorank import records
from audiorank import validate
from audiorank.hear import tasks as task_lib
from audiorank.records import lock as lock_lib
from launch import cli
from launch import devices as machine
from launch import run_queue

# Bytes of a parameter while it is trained: itself, its gradient and Adam's
# two moments, in float32.
STATE_BYTES = 16
# Values per token and width of a block that the backward pass keeps, by
# model.remat. Fitted to the memory that libtpu needs for en128-12 and en768-12
# with decoder 512-8 at 16 clips of 10 s in bfloat16: 40 MB per clip with dots,
# 104 and 171 with none.
KEPT_WIDTH = {'none': 42, 'dots': 13, 'full': 3}
# Floats of the front end per frame of 10 ms: spectrum, power, mel bands.
KEPT_FRAME = 1500
# Memory of a worker process besides its run: Python, jax, libraries and
# compiled programs.
PROCESS_BYTES = .8e9


def points(module: ModuleType, changes: Mapping[str, Any],
           scale: str | None = None) -> dict[str, Any]:
  """Returns {point: config} of a config file.

  Args:
    module: the file, imported.
    changes: {field: value} for all points.
    scale: of the points, if the file has scales.

  Raises:
    ValueError: a scale that the file does not have; no points; a value that
      cannot be part of a run's name, such as a function.
  """
  out: dict[str, Any] = {}
  if scale and not inspect.signature(module.points).parameters:
    raise ValueError(f'--scale={scale}: {module.__file__} has one scale')
  with cli.of_file():
    if scale:
      names = module.points(scale)
    else:
      names = module.points()
    for point in names:
      out[point] = module.get_config(point)
  if not out:
    raise ValueError(f'{module.__file__}: points() is empty: expected the '
                     'arguments of get_config')
  for point, config in out.items():
    # Last, so that the command line takes precedence over the file.
    config.update_from_flattened_dict(changes)
    records.plain(config, f'{module.__file__}:{point}')
  return out


def resolve(configs: dict[str, Any],
            dataset: Callable[[Any], tuple[str, str]]) -> None:
  """Adds paths and checksums of corpus and tasks to configs, in place.

  Args:
    configs: {point: config}.
    dataset: called with the first config if that has no corpus; writes the
      synthetic dataset and returns its (corpus, tasks).
  """
  from audiorank import data
  first = next(iter(configs.values()))
  # Without a corpus all points share the synthetic dataset.
  if not first.data.root:
    corpus, folder = dataset(first)
    for config in configs.values():
      config.data.root = corpus
      config.eval.tasks = config.eval.tasks or folder
  # Each corpus and set of tasks is read once, not once per point.
  checksums: dict[tuple[str, str], str] = {}
  described: dict[tuple[str, str], str] = {}
  for config in configs.values():
    source = config.data.root, config.data.mixture
    if source not in checksums:
      checksums[source] = data.load(*source).sha256
    config.data.sha256 = checksums[source]
    config.data.mixture = data.mixture.absolute(config.data.mixture)
    for part, field in (('data', 'root'), ('eval', 'tasks')):
      config[part][field] = files.absolute(config[part][field],
                                           f'{part}.{field}')
    which = config.eval.tasks, config.eval.task_names
    if which not in described:
      described[which] = task_lib.checksum(evaluate.task_folders(config))
    config.eval.sha256 = described[which]


def runs(configs: dict[str, Any]) -> dict[str, tuple[Any, run_queue.Entry]]:
  """Returns {run_id: (config, entry)}, largest first.

  The untrained baselines of the configs are included; many share the same.
  """
  out = {}
  for config in [*configs.values(),
                 *(baselines.untrained(c) for c in configs.values())]:
    # Keyed by identity: baselines that several points share are one run.
    out[records.run_id(config)] = config, run_queue.entry(config)
  # A long run that began last would be waited for alone.
  return dict(sorted(out.items(), key=lambda item: -item[1][1].work))


def open_run(workdir: pathlib.Path, config: Any) -> None:
  """Writes or checks a run's folder; see records.open_run.

  A run in progress, perhaps on another machine with another mesh, keeps its
  settings.

  Raises:
    LockHeld: it is in progress, but must be scored with other settings.
  """
  try:
    records.open_run(workdir, config)
  except lock_lib.LockHeld:
    theirs = records.load_config(workdir)
    if not records.same_evaluation(records.plain(theirs.eval),
                                   records.plain(config.eval)):
      raise


def write_index(root: pathlib.Path, title: str, experiment: str,
                runs: Mapping[str, tuple[Any, run_queue.Entry]]) -> list[str]:
  """Adds runs to <root>/sweep.json; returns the names of all its runs.

  Several commands may add to the same root at the same time.

  Args:
    root: of the sweep.
    title: of the sweep.
    experiment: name of the experiment of the runs.
    runs: {run_id: (config, entry)}.
  """
  # Called again if another command was faster; see files.update_json.
  def added(before: dict[str, Any] | None) -> dict[str, Any]:
    if before is None:
      before = {'runs': {}}
    known = run_queue.entries_of(before, root / 'sweep.json')
    entries = {run_id: about for run_id, about in known.items() if about}
    for run_id in set(known) - set(entries):  # Of older versions, by name.
      if (root / run_id / 'config.json').exists():
        config = records.load_config(root / run_id)
        entries[run_id] = run_queue.entry(config)._asdict()
    entries = entries | {run_id: entry._asdict()
                         for run_id, (_, entry) in runs.items()}
    experiments = {**before.get('experiments', {}), experiment: title}
    # The title of the first command stays.
    return {'title': before.get('title', title), 'experiments': experiments,
            'runs': entries}

  return sorted(files.update_json(root / 'sweep.json', added)['runs'])


def check(configs: Mapping[str, Any],
          devices: machine.Devices | None) -> int:
  """Checks all that needs no corpus; returns the devices that a slot needs.

  A run that does not fit on one device gets several, in `mesh.fsdp`, which is
  not part of its identity.

  Args:
    configs: {point: config}.
    devices: of this machine; None if the runs are done elsewhere.

  Raises:
    ValueError, FileNotFoundError: a point that cannot run; missing tasks.
  """
  # All slots are alike, so the largest run decides.
  size = max(devices_needed(config, devices) for config in configs.values())
  # Points share tasks, which are checked once.
  tasks = set()
  for config in configs.values():
    validate.fields(config, size)
    if config.data.root:  # Otherwise the synthetic dataset is written.
      validate.places(config)
    if config.eval.tasks:
      tasks |= set(evaluate.task_folders(config))
  for folder in sorted(tasks):
    validate.task(folder)
  return size


def check_corpus(configs: Iterable[Any]) -> None:
  """Raises an error if a corpus does not fit a config; see validate.corpus."""
  # Configs that differ in other fields are checked once.
  checked = set()
  for config in configs:
    tree = config_lib.plain(config)
    # An untrained network does not need the hours of training.
    parts = files.digest([tree['data'], tree['monitor'],
                          config.train.steps == 0])
    if parts not in checked:
      validate.corpus(config)
      checked.add(parts)


def devices_needed(config: Any, devices: machine.Devices | None) -> int:
  """Returns the number of devices of a run.

  Sets mesh.fsdp if one device is too small and the config has mesh.data=-1.

  Args:
    config: of the run.
    devices: of this machine, or None.

  Raises:
    ValueError: there are not enough devices, or the run does not fit on them.
  """
  data, fsdp = config.mesh.data, config.mesh.fsdp
  if devices is None:
    return max(data, 1) * max(fsdp, 1)
  there = len(devices.ids)
  if devices.kind == 'cpu':
    # jax can divide a CPU into several devices.
    there = int(os.environ.get('JAX_NUM_CPU_DEVICES', 1))
  if data != -1 or not 1 <= fsdp <= there:
    config_lib.mesh_sides(data, fsdp, there)
  if devices.memory:
    need = state_bytes(config) + clip_bytes(config)
    # Parameters and moments are divided over fsdp devices: doubled until their
    # share fits.
    # A tenth is left for what the estimate does not know.
    while need / fsdp > .9 * devices.memory:
      if data != -1 or 2 * fsdp > there:
        raise ValueError(
            f'en{config.model.width}-{config.model.depth}: {need / 1e9:.1f} '
            f'GB of parameters and moments do not fit into {fsdp} of {there} '
            f'{devices.kind}s of {devices.memory / 1e9:.1f} GB: expected more '
            'devices, mesh.data=-1 or a smaller model')
      fsdp *= 2
    config.mesh.fsdp = fsdp
  return max(data, 1) * fsdp


def parameters(config: Any) -> int:
  """Returns the approximate number of parameters, with the decoder."""
  m = config.model
  # Of width^2: queries, keys, values and projection, and two layers of the MLP.
  block = 4 + 2 * m.mlp_ratio
  # Biases, norms and positions are small beside these.
  return sum(part.depth * block * part.width ** 2 for part in (m, m.decoder))


def state_bytes(config: Any) -> float:
  """Returns the bytes of a run's parameters, gradient and moments."""
  return STATE_BYTES * parameters(config)


def clip_bytes(config: Any, cpu: bool = False) -> float:
  """Returns the approximate bytes of a clip in a training step.

  Args:
    config: of a run.
    cpu: whether it trains on a CPU, where 'auto' recomputes nothing.
  """
  m = config.model
  # Frames of 10 ms.
  frames = 100 * config.data.crop_seconds
  tokens = frames / m.patch_frames
  visible = (1 - config.mask.ratio) * tokens
  # The encoder sees the visible patches, the decoder all of them.
  values = sum(part.depth * n * part.width
               for part, n in ((m, visible), (m.decoder, tokens)))
  auto = 'dots'
  if cpu:
    auto = 'none'
  remat = {'auto': auto, True: 'full', False: 'none'}.get(m.remat, m.remat)
  size = {'bfloat16': 2, 'float32': 4}[m.dtype]
  return size * values * KEPT_WIDTH[remat] + 4 * frames * KEPT_FRAME


def device_bytes(config: Any, cpu: bool = False) -> float:
  """Returns the approximate bytes of a run on a device."""
  return state_bytes(config) + config.train.batch * clip_bytes(config, cpu)


def host_bytes(config: Any) -> float:
  """Returns the approximate bytes of a worker with a run on the CPU."""
  monitor = config.monitor
  # int16: two bytes a sample.
  clips = 2 * config_lib.RATE * (monitor.clips * monitor.crop_seconds
                        + monitor.valid_clips * config.data.crop_seconds)
  corpus = 0.
  if config.data.in_memory:
    corpus = 2 * config_lib.RATE * 3600 * config.data.hours
  return PROCESS_BYTES + clips + corpus + device_bytes(config, cpu=True)


def cpu_workers(configs: Mapping[str, Any]) -> int:
  """Returns the number of workers for the CPU of this machine.

  It is one per core, or fewer if their memory is not enough for so many of the
  largest run.
  """
  need = max(host_bytes(config) for config in configs.values())
  return max(1, min(machine.cores(), int(machine.memory() / need)))
