"""Where a program gets its batches: read from disk, or already on the devices.

A corpus that fits into the memory of the devices is loaded there once. A batch
then only says where its clips are, and the training step gathers them.
Otherwise host threads read clips ahead. Both give the same clips bit for bit,
also for mixtures, subsets and categories. The random gain is part of the step.

Shapes: B batch, C steps of a call, K runs, S samples, R rows of audio, W
samples of a row, 3 numbers that say where a clip is (data/resident.py).
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from audiorank import config as config_lib
from audiorank import data
from audiorank import sampling
from audiorank.data import resident

Config = config_lib.Config

# Largest share of a device's memory for the corpus. Runs need the rest.
DEVICE_SHARE = .25
# Largest share of a host's memory for the corpora of all its workers, at most
# one per core.
HOST_SHARE = .125

# Not empty once a run of this process did not fit beside the corpus.
_FROM_DISK: list[bool] = []

Place = Callable[[np.ndarray, int], jax.Array]


class Feed:
  """Batches of one run, or of several that train in one program.

  Runs that train on the same clips in the same order share their batches.

  Args:
    configs: of the runs; they differ only in the fields of `train.VARIES`.
    samples: of the runs.
    step: the step to begin with.
    place: (rows, axis) -> global array; `axis` is the axis of this process's
      rows. The first axis of `rows` is K if runs have their own batches.
    whole: the sharding of arrays that every device has a copy of.

  Attributes:
    shared: whether all runs have the same batches.
    audio_RW: the corpus on the devices, an argument of the programs; None if
      batches are read from disk.
  """

  def __init__(self, configs: Sequence[Config],
               samples: Sequence[sampling.Samples], step: int, place: Place,
               whole: jax.sharding.Sharding):
    names = [(s.subset.sha256, c.data.seed) for c, s in zip(configs, samples)]
    unique = {name: (c, s) for name, c, s in zip(names, configs, samples)}
    self.shared = len(unique) == 1
    # Which of the different streams each run takes its batches from.
    self._of_run = [list(unique).index(name) for name in names]
    self._place = place
    self.audio_RW: jax.Array | None = None
    self._streams: list[Any] = []
    if step == configs[0].train.steps:
      return  # No step is left, so nothing is read.
    corpus = resident_corpus(configs[0], samples, self.shared)
    if corpus is None:
      # All streams of the process share its reading threads.
      threads = max(1, configs[0].data.threads // len(unique))
      self._streams = [stream_audio(c, s.subset, step, threads)
                       for c, s in unique.values()]
    else:
      on_devices = resident.load(corpus, whole)
      self.audio_RW = on_devices.audio_RW
      self._streams = [stream_places(c, s.subset, step, on_devices)
                       for c, s in unique.values()]

  def next(self, count: int) -> jax.Array:
    """Returns the batches of the next `count` steps.

    wave_BS int16, or clip_B3 if there is `audio_RW`. If runs have their own
    batches there is a first axis K, and before it an axis C if count > 1.
    """
    batches = [self._next() for _ in range(count)]
    if count == 1:
      return self._place(batches[0], 0)
    # The first axis is the steps of the call; runs or rows come second.
    return self._place(np.stack(batches), 1)

  def close(self) -> None:
    """Ends the threads that read ahead."""
    for stream in self._streams:
      stream.close()

  def _next(self) -> np.ndarray:
    # Every stream advances by one batch, also for runs that have diverged.
    batches = [next(stream) for stream in self._streams]
    if self.shared:
      return batches[0]
    return np.stack([batches[index] for index in self._of_run])


def resident_corpus(config: Config, samples: Sequence[sampling.Samples],
                    shared: bool) -> data.Corpus | None:
  """Returns the corpus to load onto the devices for the runs of a program.

  If possible everything that may be trained on: then runs with other hours or
  categories, and later runs of this process, share it. If that is too large,
  the subset of these runs, if it is the same for all. None: neither fits.
  """
  candidates = [samples[0].usable]
  if shared:
    candidates.append(samples[0].subset)
  # The larger one first: it serves more runs.
  for corpus in candidates:
    if everywhere(fits(config.data.in_memory, resident.size(corpus))):
      return corpus
  return None


def everywhere(answer: bool) -> bool:
  """Returns whether the answer is True on every process of a run.

  Their machines may have memory of different sizes, but all must run the same
  program.
  """
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.process_allgather(np.int32(answer)).all())


def fits(wanted: bool, size: int) -> bool:
  """Returns whether a corpus is to be loaded onto the devices.

  On accelerators whenever it fits. On a CPU, where the audio is in the host's
  memory either way, only if the config asks for it.

  Args:
    wanted: data.in_memory.
    size: bytes of the corpus.
  """
  if jax.default_backend() == 'cpu':
    # All of the machine's memory, since cgroup limits are not visible here.
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return wanted and size < HOST_SHARE * memory / (os.cpu_count() or 1)
  if _FROM_DISK:
    return False
  # A backend without statistics has a limit of 0 here: read from disk.
  stats = jax.local_devices()[0].memory_stats() or {}
  return size < DEVICE_SHARE * stats.get('bytes_limit', 0)


def read_from_disk() -> bool:
  """Frees the corpus on the devices, for good: later runs read from disk.

  Called after a run was out of memory; the run may fit without the corpus.

  Returns:
    whether that freed anything.
  """
  _FROM_DISK.append(True)
  return resident.release()


def stream_audio(config: Config, subset: data.Corpus, step: int,
                 threads: int) -> Any:
  """Returns an iterator of this process's rows of every batch from a step."""
  return data.stream(
      subset, batch=config.train.batch,
      samples=config_lib.crop_samples(config.data.crop_seconds),
      seed=config.data.seed, first_step=step,
      process_index=jax.process_index(), process_count=jax.process_count(),
      threads=threads, resident=config.data.in_memory)


def stream_places(config: Config, subset: data.Corpus, step: int,
                  on_devices: resident.Resident) -> Any:
  """Returns `stream_audio`'s iterator, of where the clips are on devices."""
  # This process's rows of the global batch, as in `data.stream`.
  share = config.train.batch // jax.process_count()
  first = jax.process_index() * share
  return resident.stream(
      on_devices, subset, batch=config.train.batch,
      samples=config_lib.crop_samples(config.data.crop_seconds),
      seed=config.data.seed, first_step=step,
      rows=slice(first, first + share))
