"""Which clips a config trains on, and which it is evaluated on.

The corpus is parted by recording first, whatever is trained on: held-out
recordings are the same for every run of one `data.subset_seed`, and so is the
sample that RankMe is measured on. `data.category` and `data.hours` choose among
the rest.

Shapes: N clips, S samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from audiorank import config as config_lib
from audiorank import data

Config = config_lib.Config

HELD_OUT = 'valid'  # The sample of held-out recordings.
TRAINED = 'train'  # The sample of what this very run trains on.
# A sample's name is part of a column's, which must not be another's.
RESERVED = ('low', 'high', 'value_inf', 'center')
LEAST = 2  # Clips that a rank needs.


class Parts(NamedTuple):
  """Selections of a corpus, each a data.Corpus.

  usable: all that is not held out.  subset: what is trained on.
  held_out: every recording that is held out.
  valid: those of the categories that are trained on.
  """
  usable: data.Corpus
  subset: data.Corpus
  held_out: data.Corpus
  valid: data.Corpus


class Sample(NamedTuple):
  """Clips of one length.  wave_NS: int16.  source_N: their recordings."""
  wave_NS: npt.NDArray[np.int16]
  source_N: npt.NDArray[np.int64]


class Samples(NamedTuple):
  """What a run reads.

  subset: the corpus that it trains on.  monitor: the clips of RankMe.
  valid_NS: int16 held-out clips of the validation loss; none where it is off.
  """
  subset: data.Corpus
  monitor: Sample
  valid_NS: npt.NDArray[np.int16]


def parts(config: Config) -> Parts:
  """Returns the Parts of a config's corpus.

  Raises:
    FileNotFoundError, ValueError: a corpus, category, number of hours or
      further sample that is not there; names the field.
  """
  part = config.data
  try:
    corpus = data.load(part.root, part.mixture)
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{error} (moved? --corpus=FOLDER says where the '
                            'corpus is now)') from None
  if part.sha256 and corpus.sha256 != part.sha256:
    raise ValueError(f'data.root {part.root}: manifest {corpus.sha256[:12]}, '
                     f'but this run was made for {part.sha256[:12]}')
  names = data.categories(corpus, part.category, 'data.category')
  usable, held_out = data.split(corpus, part.valid_fraction, part.subset_seed)
  subset, valid = usable, held_out
  if names:
    for corpus_part, what in ((usable, 'to train on'), (held_out, 'held out')):
      if not data.has_categories(corpus_part, names):
        raise ValueError(
            f'data.category {part.category}: no recording {what} of '
            f'{part.root} at data.valid_fraction {part.valid_fraction:g}')
    subset = data.of_categories(usable, names)
    valid = data.of_categories(held_out, names)
  if part.hours and config.train.steps:
    subset = data.subset(subset, part.hours, part.subset_seed)
  chosen = Parts(usable, subset, held_out, valid)
  check_lengths(config, chosen)
  return chosen


def check_lengths(config: Config, chosen: Parts) -> None:
  """Raises ValueError where there are fewer clips than a config asks for."""
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
  sample = Sample(*data.sample(
      chosen.usable, monitor.clips,
      config_lib.crop_samples(monitor.crop_seconds), monitor.seed))
  valid_NS = np.zeros((0, 1), np.int16)
  if monitor.valid_clips and len(chosen.valid):
    valid_NS, _ = data.sample(
        chosen.valid, monitor.valid_clips,
        config_lib.crop_samples(config.data.crop_seconds), monitor.seed)
  return Samples(chosen.subset, sample, valid_NS)


def names(config: Config) -> list[str]:
  """Returns the names of the further samples, in the config's order.

  Raises:
    ValueError: a name that would make two columns of one name.
  """
  text = config.monitor.samples
  out = config_lib.names(text)
  for name in out:
    if name in RESERVED or name.startswith(('center_', 'layer_')):
      raise ValueError(f'monitor.samples {text!r}: rank_{name} is the column '
                       'of something else: expected another name of category')
  return out


def further_parts(config: Config,
                  chosen: Parts) -> Iterator[tuple[str, data.Corpus]]:
  """Yields (name, Corpus) of the further samples; see `parts` for errors."""
  for name in names(config):
    if name == HELD_OUT:
      yield name, chosen.held_out
    elif name == TRAINED:
      yield name, chosen.subset
    else:
      data.categories(chosen.usable, name, 'monitor.samples')
      yield name, data.of_categories(chosen.usable, [name])


def further(config: Config) -> Iterator[tuple[str, Sample]]:
  """Yields (name, Sample) of the further samples.

  They are read when they are wanted: at full scale each is some gigabytes. A
  sample has `monitor.clips` clips, or as many as there are.
  """
  if not names(config):
    return
  chosen, monitor = parts(config), config.monitor
  length = config_lib.crop_samples(monitor.crop_seconds)
  for name, corpus in further_parts(config, chosen):
    clips = min(monitor.clips, data.clips_in(corpus, length))
    yield name, Sample(*data.sample(corpus, clips, length, monitor.seed))
