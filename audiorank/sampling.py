"""Which clips a config trains on, and which it is evaluated on.

The corpus is first split by recording into a usable and a held-out part. Both
depend on `data.subset_seed` and `data.valid_fraction` only, and so does the
sample that RankMe is measured on: runs are comparable whatever they train on.
`data.category` and `data.hours` then choose among the usable part.

Shapes: N clips, S samples.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from audiorank import config as config_lib
from audiorank import data
from audiorank import files
from audiorank.data import mixture as mixture_lib

Config = config_lib.Config

HELD_OUT = 'valid'  # The sample of held-out recordings.
TRAINED = 'train'  # The sample of what this very run trains on.
# A sample's name becomes part of a column's name: rank_low is another column.
RESERVED = ('low', 'high', 'value_inf', 'center')
LEAST = 2  # A rank needs so many clips.


class Parts(NamedTuple):
  """Selections of a corpus, each a data.Corpus.

  usable: all that may be trained on.  subset: the part that is trained on.
  held_out: all recordings that are held out.
  valid: those of the categories that are trained on.
  """
  usable: data.Corpus
  subset: data.Corpus
  held_out: data.Corpus
  valid: data.Corpus


# eq=False: by identity, as arrays have no single truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """Clips of one length.

  wave_NS: int16, mapped from disk.  source_N: a number per recording.
  """
  wave_NS: npt.NDArray[np.int16]
  source_N: npt.NDArray[np.int64]

  def __len__(self) -> int:
    return len(self.wave_NS)


EMPTY = Sample(np.zeros((0, 1), np.int16), np.zeros(0, np.int64))


class Samples(NamedTuple):
  """The clips of a run.

  usable: all that may be trained on.  subset: the part that is trained on.
  monitor: the clips on which RankMe is measured.
  valid: the held-out clips of the validation loss; EMPTY if it is off.
  """
  usable: data.Corpus
  subset: data.Corpus
  monitor: Sample
  valid: Sample


def parts(config: Config) -> Parts:
  """Returns the Parts of a config's corpus.

  Raises:
    FileNotFoundError, ValueError: a corpus, category, number of hours or
      further sample that is not there; names the field.
  """
  part = config.data
  try:
    corpus, usable, held_out = _split(
        part.root, part.mixture, _stamps(part.root, part.mixture),
        part.valid_fraction, part.subset_seed)
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{error} (moved? --corpus=FOLDER says where the '
                            'corpus is now)') from None
  # A run resumed on another corpus would be two runs in one.
  if part.sha256 and corpus.sha256 != part.sha256:
    raise ValueError(f'data.root {part.root}: manifest {corpus.sha256[:12]}, '
                     f'but this run was made for {part.sha256[:12]}')
  hours = part.hours
  if not config.train.steps:
    hours = 0  # An untrained baseline needs no hours to train on.
  # Checked on both parts: categories of few recordings may miss one.
  names = data.categories(corpus, part.category, 'data.category')
  if names:
    for corpus_part, what in ((usable, 'to train on'), (held_out, 'held out')):
      if not data.has_categories(corpus_part, names):
        raise ValueError(
            f'data.category {", ".join(names)}: no recording {what} of '
            f'{part.root} at data.valid_fraction {part.valid_fraction:g}')
  subset, valid = _choose(usable, held_out, tuple(names), hours,
                          part.subset_seed)
  chosen = Parts(usable, subset, held_out, valid)
  check_lengths(config, chosen)
  return chosen


def _stamps(root: str, mixture: str) -> tuple[float, ...]:
  """Returns the times at which corpora were written.

  A worker may live longer than a corpus; another one is then read anew.
  """
  roots = [root, *(other for other, _ in mixture_lib.parse(mixture))]
  paths = [files.path(root) / 'corpus.json' for root in roots]
  # A missing corpus is reported by data.load.
  return tuple(p.stat().st_mtime_ns for p in paths if p.is_file())


# A selection reads columns of all records, which takes seconds for the largest
# corpora. The runs of a worker share most selections.
@functools.lru_cache(4)
def _split(root, mixture, stamps, valid_fraction, seed):
  """Returns (corpus, usable part, held-out part)."""
  del stamps
  corpus = data.load(root, mixture)
  return corpus, *data.split(corpus, valid_fraction, seed)


@functools.lru_cache(64)
def _choose(usable, held_out, categories, hours, seed):
  """Returns (subset, valid) of Parts."""
  subset, valid = usable, held_out
  if categories:
    subset = data.of_categories(usable, categories)
    valid = data.of_categories(held_out, categories)
  if hours:
    subset = data.subset(subset, hours, seed)
  return subset, valid


def check_lengths(config: Config, chosen: Parts) -> None:
  """Raises ValueError if there are fewer clips than a config asks for."""
  part, monitor = config.data, config.monitor
  clips = data.clips_in(
      chosen.valid, config_lib.crop_samples(part.crop_seconds))
  if clips < monitor.valid_clips:
    raise ValueError(
        f'monitor.valid_clips {monitor.valid_clips}: {clips} clips of '
        f'{part.crop_seconds:g} s are held out of {part.root} at '
        f'data.valid_fraction {part.valid_fraction:g}')
  for name, corpus in further_parts(config, chosen):
    clips = data.clips_in(
        corpus, config_lib.crop_samples(monitor.crop_seconds))
    if clips < LEAST:
      raise ValueError(f'monitor.samples {name}: {clips} clip of '
                       f'{monitor.crop_seconds:g} s in {part.root}, expected '
                       f'at least {LEAST}')


def samples(config: Config) -> Samples:
  """Returns the Samples of a config; raises as `parts`."""
  chosen, monitor = parts(config), config.monitor
  sample = _read_once(
      chosen.usable, monitor.clips,
      config_lib.crop_samples(monitor.crop_seconds), monitor.seed)
  valid = EMPTY
  if monitor.valid_clips and len(chosen.valid):
    valid = _read_once(
        chosen.valid, monitor.valid_clips,
        config_lib.crop_samples(config.data.crop_seconds), monitor.seed)
  return Samples(chosen.usable, chosen.subset, sample, valid)


def read(corpus: data.Corpus, clips: int, length: int, seed: int) -> Sample:
  """Returns the Sample that `data.sample` reads, mapped from the cache.

  At full scale it takes gigabytes; processes of a machine share one copy.

  Args:
    corpus, clips, seed: as of `data.sample`.
    length: samples of a clip.
  """
  folder = files.local_cache('samples')
  name = files.digest({'corpus': corpus.sha256, 'clips': clips,
                       'length': length, 'seed': seed})
  # Named by all that the content depends on.
  wave_path, source_path = folder / f'{name}.npy', folder / f'{name}-source.npy'

  def mapped(path):
    return Sample(np.load(path, mmap_mode='r'), np.load(source_path))

  sample = files.read_cached(wave_path, mapped)
  if sample is not None:
    return sample
  wave_NS, source_N = data.sample(corpus, clips, length, seed)
  # The waves last: `read` takes their file for a sign that both are there.
  for path, array in ((source_path, source_N), (wave_path, wave_NS)):
    files.write_cached(path, functools.partial(save, array))
  # If nothing can be cached, this process has its own copy.
  return files.read_cached(wave_path, mapped) or Sample(wave_NS, source_N)


# The clips of RankMe and those of the loss, for all runs of this process.
_read_once = functools.lru_cache(2)(read)


def save(array: npt.NDArray, path: files.Path) -> None:
  """Writes an array to a path, whatever its ending."""
  # Of a path np.save would change the ending to .npy.
  with open(path, 'wb') as file:
    np.save(file, array)


def names(config: Config) -> list[str]:
  """Returns the names of the further samples, in the config's order.

  Raises:
    ValueError: a name that would make two columns of one name.
  """
  out = list(dict.fromkeys(config.monitor.samples))
  for name in out:
    if name in RESERVED or name.startswith(('center_', 'layer_')):
      raise ValueError(f'monitor.samples {name!r}: rank_{name} is the column '
                       'of something else: expected another name of category')
  return out


def further_parts(config: Config,
                  chosen: Parts) -> Iterator[tuple[str, data.Corpus]]:
  """Yields (name, Corpus) of the further samples; see `parts` for errors."""
  for name in names(config):
    if name in (HELD_OUT, TRAINED) and data.has_categories(
        chosen.usable, [name]):
      raise ValueError(f'monitor.samples {name!r}: a category of the corpus '
                       'too: expected categories of other names')
    if name == HELD_OUT:
      yield name, chosen.held_out
    elif name == TRAINED:
      yield name, chosen.subset
    else:
      data.categories(chosen.usable, [name], 'monitor.samples')
      yield name, data.of_categories(chosen.usable, [name])


def further(config: Config) -> Iterator[tuple[str, Sample]]:
  """Yields (name, Sample) of the further samples.

  One at a time: at full scale each takes gigabytes. A sample has
  `monitor.clips` clips, or fewer if there are not as many.
  """
  if not names(config):
    return
  chosen, monitor = parts(config), config.monitor
  length = config_lib.crop_samples(monitor.crop_seconds)
  for name, corpus in further_parts(config, chosen):
    clips = min(monitor.clips, data.clips_in(corpus, length))
    yield name, read(corpus, clips, length, monitor.seed)
