"""Which recordings: nested subsets by hours, a validation part.

Shapes: R records.
"""

import hashlib
import math

import numpy as np
import pandas as pd

from audiorank.data import folder


def subset(corpus, hours, seed):
  """The first `hours` of the corpus in one seeded order of its recordings.

  The order depends on the seed and the recordings' names alone, and records of
  one recording follow each other; so smaller subsets lie inside larger ones.
  The cut falls between records: at most one record more than asked.

  Args:
    corpus: a Corpus.
    hours: a positive number, or math.inf for all.
    seed: of the order.

  Raises:
    ValueError: hours is not a positive number, or more than there are.
  """
  if not isinstance(hours, (int, float)) or not hours > 0:
    raise ValueError(f'hours is {hours!r}: expected a positive number, or '
                     'math.inf for all')
  if hours == math.inf:
    return corpus
  if hours > corpus.hours + 1e-6:
    raise ValueError(f'{hours:g} hours asked for, the corpus {corpus.root} has '
                     f'{corpus.hours:.4g}')
  order_R = _by_source(corpus, 'subset', seed)
  ends_R = np.cumsum(corpus.records['samples'].to_numpy()[order_R])
  wanted = hours * 3600 * corpus.rate
  keep = min(int(np.searchsorted(ends_R, wanted - 0.5)) + 1, len(order_R))
  return _select(corpus, np.sort(order_R[:keep]))


def split(corpus, valid_fraction, seed):
  """Parts the corpus by recording into (train, valid).

  Recordings are taken for valid in a seeded order, each as long as it still
  fits into `valid_fraction` of the samples; at least the shortest one goes.

  Raises:
    ValueError: a fraction outside (0, 1), or a corpus of one recording.
  """
  if not 0 < valid_fraction < 1:
    raise ValueError(f'valid_fraction is {valid_fraction}: expected a number '
                     'between 0 and 1')
  samples_R = corpus.records['samples'].to_numpy()
  code_R, sources = sources_of(corpus)
  if len(sources) < 2:
    raise ValueError(f'{corpus.root} has {len(sources)} source recording: at '
                     'least 2 are needed to split off a validation part')
  length = np.bincount(code_R, samples_R)
  room = valid_fraction * samples_R.sum()
  valid = np.zeros(len(sources), bool)
  for source in np.argsort(ranks(sources, 'split', seed), kind='stable'):
    if length[source] <= room:
      valid[source] = True
      room -= length[source]
  if not valid.any():
    valid[np.argmin(length)] = True
  return (_select(corpus, np.flatnonzero(~valid[code_R])),
          _select(corpus, np.flatnonzero(valid[code_R])))


def categories(corpus, text, field):
  """Returns the categories named between commas.

  Args:
    corpus: a Corpus.
    text: comma-separated categories of its manifest.
    field: whose text it is, for the message.

  Raises:
    ValueError: a category that the corpus does not have; names those it has.
  """
  names = [part.strip() for part in text.split(',') if part.strip()]
  have = sorted(set(corpus.records['category']) - {''})
  for name in names:
    if name not in have:
      most = ', '.join(have[:20]) + (', ...' if len(have) > 20 else '')
      raise ValueError(f'{field}: no category {name!r} in {corpus.root}: '
                       + (f'there are {most}' if have else 'it has none'))
  return list(dict.fromkeys(names))


def of_categories(corpus, names):
  """The records of the corpus that are of one of the categories.

  Raises:
    ValueError: there is none.
  """
  row_R = np.flatnonzero(corpus.records['category'].isin(names))
  if not len(row_R):
    raise ValueError(f'{corpus.root}: no record of {", ".join(names)} here')
  return _select(corpus, row_R)


def _select(corpus, row_R):
  records = corpus.records.iloc[row_R].reset_index(drop=True)
  chosen = hashlib.sha256(
      corpus.sha256.encode() + records['record'].to_numpy('<i8').tobytes())
  return folder.made(corpus.root, records, corpus.rate, chosen.hexdigest())


def sources_of(corpus):
  """Each record's place in the list of recordings, and that list."""
  code_R, sources = pd.factorize(corpus.records['source'], sort=True)
  return code_R, list(sources)


def _by_source(corpus, purpose, seed):
  code_R, sources = sources_of(corpus)
  return np.argsort(ranks(sources, purpose, seed)[code_R], kind='stable')


def ranks(sources, purpose, seed):
  """Each recording's place in a seeded order of their names."""
  key = [digest(f'{purpose}:{seed}:{source}') for source in sources]
  rank = np.empty(len(key), np.int64)
  rank[np.argsort(key, kind='stable')] = np.arange(len(key))
  return rank


def digest(text):
  return hashlib.sha256(text.encode()).hexdigest()
