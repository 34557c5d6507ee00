"""Which clips a config trains on, and which it is read on.

The corpus is parted by recording first, whatever is trained on: held-out
recordings are the same for every run of one `data.subset_seed`, and so is the
sample that RankMe is read on. `data.category` and `data.hours` choose among
the rest.

Shapes: N clips, S samples.
"""

from typing import NamedTuple

from audiorank import data
from audiorank import program

HELD_OUT = 'valid'  # The sample of held-out recordings.
TRAINED = 'train'  # The sample of what this very run trains on.
# A sample's name is part of a column's, which must not be another's.
TAKEN = ('low', 'high', 'value_inf', 'center')
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


def parts(config):
  """Returns the Parts of a config's corpus.

  Raises:
    FileNotFoundError, ValueError: a corpus, category, number of hours or
      further sample that is not there; names the field.
  """
  a = config.data
  corpus = data.load(a.root, a.mixture)
  if a.sha256 and corpus.sha256 != a.sha256:
    raise ValueError(f'data.root {a.root}: manifest {corpus.sha256[:12]}, but '
                     f'this run was made for {a.sha256[:12]}')
  names = data.categories(corpus, a.category, 'data.category')
  usable, held_out = data.split(corpus, a.valid_fraction, a.subset_seed)
  subset, valid = usable, held_out
  if names:
    for part, what in ((usable, 'to train on'), (held_out, 'held out')):
      if not data.has_categories(part, names):
        raise ValueError(
            f'data.category {a.category}: no recording {what} of '
            f'{a.root} at data.valid_fraction {a.valid_fraction:g}')
    subset, valid = (data.of_categories(part, names)
                     for part in (usable, held_out))
  if a.hours and config.train.steps:
    subset = data.subset(subset, a.hours, a.subset_seed)
  found = Parts(usable, subset, held_out, valid)
  r = config.monitor
  count = data.clips_in(valid, program.crop_samples(a.crop_seconds))
  if count < r.valid_clips:
    raise ValueError(
        f'monitor.valid_clips {r.valid_clips}: {count} clips of '
        f'{a.crop_seconds:g} s are held out of {a.root} at '
        f'data.valid_fraction {a.valid_fraction:g}')
  for name, part in further_parts(config, found):
    count = data.clips_in(part, program.crop_samples(r.crop_seconds))
    if count < LEAST:
      raise ValueError(f'monitor.samples {name}: {count} clip of '
                       f'{r.crop_seconds:g} s in {a.root}, expected at least '
                       f'{LEAST}')
  return found


def names(config):
  """Returns the names of the further samples, in the order given.

  Raises:
    ValueError: a name that would make two columns of one name.
  """
  text = config.monitor.samples
  out = list(dict.fromkeys(p.strip() for p in text.split(',') if p.strip()))
  for name in out:
    if name in TAKEN or name.startswith(('center_', 'layer_')):
      raise ValueError(f'monitor.samples {text!r}: rank_{name} is the column '
                       'of something else: expected another name of category')
  return out


def further_parts(config, found):
  """Yields (name, Corpus) of the further samples; see `parts` for errors."""
  for name in names(config):
    if name in (HELD_OUT, TRAINED):
      yield name, found.held_out if name == HELD_OUT else found.subset
    else:
      data.categories(found.usable, name, 'monitor.samples')
      yield name, data.of_categories(found.usable, [name])


def further(config):
  """Yields (name, (wave_NS int16, source_N)) of the further samples.

  They are read when they are wanted: at full scale each is some gigabytes. A
  sample holds `monitor.clips` clips, or as many as there are.
  """
  if not names(config):
    return
  found, r = parts(config), config.monitor
  length = program.crop_samples(r.crop_seconds)
  for name, part in further_parts(config, found):
    clips = min(r.clips, data.clips_in(part, length))
    yield name, data.sample(part, clips, length, r.seed)
