"""Our model behind the HEAR API."""

import sys

import evaluate_test
import numpy as np
import pytest

from audiorank import encoders
from audiorank.hear import api


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return evaluate_test.write_weights(
      tmp_path_factory.mktemp('weights') / 'one.safetensors')


def test_shapes_times_and_numbers(torch, weights):
  model = api.load_model(str(weights))
  assert isinstance(model, torch.nn.Module)
  assert model.sample_rate == 16_000
  assert model.scene_embedding_size == model.timestamp_embedding_size == 32
  rng = np.random.default_rng(0)
  ours = encoders.ours(weights)
  for samples in (200, 640, 17_120, 40_001):
    wave_BS = rng.uniform(-1, 1, (3, samples)).astype(np.float32)
    audio = torch.from_numpy(wave_BS)
    z_BD = api.get_scene_embeddings(audio, model)
    z_BLD, ms_BL = api.get_timestamp_embeddings(audio, model)
    tokens = max(1, (1 + samples // 160) // 4)
    assert z_BD.shape == (3, 32) and z_BLD.shape == (3, tokens, 32)
    assert {x.dtype for x in (z_BD, z_BLD, ms_BL)} == {torch.float32}
    np.testing.assert_array_equal(
        ms_BL.numpy(), [40. * np.arange(tokens) + 20] * 3)
    np.testing.assert_allclose(z_BD.numpy(), ours.scene(wave_BS), atol=1e-5)


def test_the_environment_may_name_the_checkpoint(torch, weights, monkeypatch):
  monkeypatch.setenv(api.VARIABLE, str(weights))
  assert api.load_model().scene_embedding_size == 32


def test_refusals(weights, monkeypatch, tmp_path):
  monkeypatch.delenv(api.VARIABLE, raising=False)
  with pytest.raises(ValueError, match='no checkpoint: .* AUDIORANK_CHECKPO'):
    api.load_model()
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    api.load_model(str(tmp_path / 'not' / 'there' / 'either'))
  with pytest.raises(ValueError, match="layer 9: expected 'final'"):
    api.load_model(str(weights), layer=9)
  with pytest.raises(ValueError, match="clamp 'all': expected 'clip'"):
    api.load_model(str(weights), clamp='all')
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ValueError, match='the HEAR API needs torch'):
    api.load_model(str(weights))
