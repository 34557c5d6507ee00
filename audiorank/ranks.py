"""RankMe of an encoder on a corpus.

Shapes: N clips, V views of a clip, D width.
"""

import soxr

from audiorank import cache
from audiorank import checkpoint
from audiorank import checksums
from audiorank import data
from audiorank import views
from audiorank.rankme import record


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
  return record.rank_fields(
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
