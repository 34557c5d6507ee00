"""RankMe of an encoder on a corpus, and of embeddings in a file of any size.

Shapes: N clips, V views of a clip, D width.
"""

import hashlib
import pathlib

from absl import logging
import numpy as np
import soxr

from audiorank import arrays
from audiorank import cache
from audiorank import checkpoint
from audiorank import checksums
from audiorank import data
from audiorank import monitor
from audiorank import rankme
from audiorank import views
from audiorank.rankme import gram
from audiorank.rankme import streaming


def corpus_rank(encoder, corpus, clips, seconds, root):
  """Returns (rank fields, whether the embeddings were in the cache).

  Args:
    encoder: of audiorank.encoders.
    corpus: of data.load.
    clips, seconds: how many, of what length.
    root: the cache's folder, or ''.
  """
  def make():
    wave_NS, source_N = data.sample(
        corpus, clips, int(round(seconds * corpus.rate)), 0)
    if encoder.rate != corpus.rate:
      wave_NS = [soxr.resample(w, corpus.rate, encoder.rate, 'HQ')
                 for w in wave_NS]
    return {'z': encoder.scene(wave_NS), 'source': source_N}

  found, hit = cache.fetch(root, encoder.key, 'corpus', {
      'corpus': corpus.sha256, 'clips': clips, 'seconds': seconds}, make)
  return monitor.rank_fields(
      found['z'], found['source'], encoder.about.get('layer', 'scene')), hit


def views_of(path, step, corpus, clips, seconds, count, batch):
  """Returns LiDAR and Diff-eRank of a run of ours; see views.fields.

  Args:
    path, step: the checkpoint.
    corpus: of data.load.
    clips, seconds: how many, of what length.
    count: views of a clip.
    batch: clips encoded at once.
  """
  config, params = checkpoint.load(path, step)
  wave_NS, _ = data.sample(corpus, clips, int(round(seconds * corpus.rate)), 0)
  folder, _ = checkpoint.find(path)
  if 0 in checksums.steps(folder):
    _, before = checkpoint.load(folder, 0)
  else:
    before = views.untrained(config, wave_NS)
  return views.fields(config, params, before, wave_NS, count, batch=batch)


def seen(path):
  """Returns 12 hex digits of a file's size, beginning and end, or ''."""
  path = pathlib.Path(path)
  if not path.is_file():
    return ''
  size, part = path.stat().st_size, 1 << 20
  with open(path, 'rb') as file:
    digest = hashlib.sha256(f'{size}\n'.encode() + file.read(part))
    file.seek(max(0, size - part))
    digest.update(file.read(part))
  return digest.hexdigest()[:12]


def file_rank(path, array='', groups=''):
  """Returns the rank fields of embeddings in a file of any size.

  Args:
    path, array: see arrays.open_table.
    groups: name of the file's array of recordings the clips come from; '' has
      the interval leave out runs of rows.

  Raises:
    FileNotFoundError, ValueError: as open_table; fewer than two rows; numbers
      that are not finite.
  """
  table = arrays.open_table(path, array)
  n, width = table.shape
  if n < 2:
    raise ValueError(f'{table.label}: a rank needs at least 2 clips, found {n}')
  if table.dtype.itemsize < 4:
    logging.warning('%s: the rounding of %s moves RankMe by up to 3 %% '
                    '(float16) or 35 %% (bfloat16) where the spectrum decays '
                    'fast', table.label, table.dtype)
  group_N = table.column(groups) if groups else None
  if group_N is not None and group_N.ndim == 1 and len(group_N) and (
      not np.isscalar(group_N[0])):
    raise ValueError(f'{path}: groups {groups}: found '
                     f'{type(group_N[0]).__name__}, expected one id a clip')
  if group_N is not None and group_N.shape != (n,):
    raise ValueError(f'{path}: groups {groups} of shape {group_N.shape}, '
                     f'expected ({n},)')
  block_N = rankme.assign_blocks(n, groups=group_N)
  state, start = rankme.init(width, int(block_N.max()) + 1), 0
  buffer_BD = gram.buffer(width)
  for z_ND in table.chunks():
    finite_N = np.isfinite(z_ND).all(axis=1)
    if not finite_N.all():
      raise ValueError(f'{table.label}: NaN or infinity in row '
                       f'{start + int(finite_N.argmin())}')
    if z_ND.dtype.itemsize < 4:
      z_ND = z_ND.astype(np.float32)
    streaming.add_rows(state, z_ND, block_N[start:start + len(z_ND)],
                       buffer_BD)
    start += len(z_ND)
  if start != n:
    raise ValueError(f'{table.label}: {start} rows, expected {n}')
  streaming.complete(state)
  if not gram.is_finite(state.gram_BDD):
    raise ValueError(f'{table.label}: the squares overflow float64: rescale '
                     'the embeddings')
  return {'n': n, 'width': width, 'dtype': str(table.dtype),
          'sources': len(np.unique(group_N)) if groups else n,
          **monitor.spectrum_fields(state)}
