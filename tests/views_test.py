"""LiDAR's views and the network before training."""

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import embed
from audiorank import evaluate
from audiorank import rankme
from audiorank import records
from audiorank import sampling
from audiorank import train
from tests import tiny


@pytest.fixture(scope='module')
def config():
  return records.frozen(tiny.shape())


@pytest.fixture(scope='module')
def waves():
  """Twenty clips that differ in pitch, which a crop keeps."""
  t_S = np.arange(16_000) / 16_000
  rng = np.random.default_rng(0)
  return np.stack([
      8000 * np.sin(2 * np.pi * 110 * 2 ** (n / 4) * t_S)
      + 200 * rng.standard_normal(16_000) for n in range(20)]).astype(np.int16)


@pytest.fixture(scope='module')
def params(config, waves):
  return evaluate.untrained(config, waves)


@pytest.mark.filterwarnings('ignore')
def test_the_untrained_network_is_the_one_that_training_starts_from(
    corpus, tmp_path):
  records.open_run(tmp_path, tiny.config(corpus, **{'train.steps': 0}))
  config = records.load_config(tmp_path)
  train.run(tmp_path, config)
  _, started = checkpoint.load(tmp_path, 0)
  wave_NS = sampling.samples(config).monitor.wave_NS
  jax.tree.map(np.testing.assert_array_equal,
               dict(evaluate.untrained(config, wave_NS)), started)


def test_views_are_of_their_clip_and_differ(config, waves, params):
  z_NVD = embed.views(config, params, waves, 4, 7680, batch=8)
  assert z_NVD.shape == (20, 4, 32) and np.isfinite(z_NVD).all()
  between = z_NVD.mean(1).std(0).mean()
  within = z_NVD.std(1).mean()
  assert 0 < within < between
  again = embed.views(config, params, waves, 4, 7680, batch=8)
  np.testing.assert_array_equal(z_NVD, again)
  other = embed.views(config, params, waves, 4, 7680, seed=1, batch=8)
  assert np.abs(other - z_NVD).max() > 1e-3


def test_fields_are_their_parts_and_zero_for_what_never_trained(
    config, waves, params):
  found = evaluate.view_fields(config, params, params, waves, views=3, batch=8,
                       tokens=5)
  assert 1 <= found['lidar'] <= 32
  assert found['diff_erank'] == 0
  tokens, _ = embed.timestamps(config, params, waves[:5])
  assert found['token_rank'] == pytest.approx(rankme.token_rank(tokens))


def test_clips_shorter_than_a_view_are_refused(config, waves, params):
  with pytest.raises(ValueError, match='longer clips'):
    embed.views(config, params, waves[:, :4000], 2, 7680)
