"""The batches of a program's runs, read ahead and placed on its devices.

Shapes: B batch, C steps of a call, K runs, S samples.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from audiorank import config as config_lib
from audiorank import data
from audiorank import sampling

Config = config_lib.Config


class Feed:
  """Batches of one run, or of several that train in one program.

  Runs that train on the same clips in the same order share one stream.

  Args:
    configs: theirs; equal but for what `train.VARIES` names.
    samples: of each.
    step: the first batch's.
    place: (rows, axis) -> the global array of this process's rows, which lie
      along that axis; the first axis of `rows` is K where runs have batches
      of their own.
  """

  def __init__(self, configs: Sequence[Config],
               samples: Sequence[sampling.Samples], step: int,
               place: Callable[[np.ndarray, int], jax.Array]):
    self._place = place
    names = [(s.subset.sha256, c.data.seed) for c, s in zip(configs, samples)]
    unique = {name: (c, s) for name, c, s in zip(names, configs, samples)}
    # Threads are of the process: few streams read with many each.
    threads = max(1, configs[0].data.threads // len(unique))
    self._streams = [open_stream(c, s.subset, step, threads)
                     for c, s in unique.values()]
    self._of_run = [list(unique).index(name) for name in names]

  @property
  def shared(self) -> bool:
    """Whether all runs have the same batches."""
    return len(self._streams) == 1

  def next(self, count: int) -> jax.Array:
    """Returns the batches of the next `count` steps.

    wave_BS where they are shared, wave_KBS otherwise; with a first axis C
    where there are several steps.
    """
    batches = [self._next() for _ in range(count)]
    if count == 1:
      return self._place(batches[0], 0)
    return self._place(np.stack(batches), 1)

  def close(self) -> None:
    """Ends the threads that read ahead."""
    for stream in self._streams:
      stream.close()

  def _next(self) -> np.ndarray:
    waves = [next(stream) for stream in self._streams]
    if self.shared:
      return waves[0]
    return np.stack([waves[index] for index in self._of_run])


def open_stream(config: Config, subset: data.Corpus,
                step: int, threads: int) -> Iterator[Any]:
  """Returns this process's rows of every batch from a step on."""
  return data.stream(
      subset, batch=config.train.batch,
      samples=config_lib.crop_samples(config.data.crop_seconds),
      seed=config.data.seed, first_step=step,
      process_index=jax.process_index(), process_count=jax.process_count(),
      threads=threads, resident=config.data.resident)
