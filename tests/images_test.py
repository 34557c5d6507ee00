"""Pictures as waves: what is written is what the model sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiorank import audio
from audiorank import config as config_lib
from audiorank import data
from audiorank import embed
from audiorank import evaluate
from audiorank import images
from audiorank import model
from audiorank import records
from audiorank import sharding
from audiorank import train
from audiorank import train_state
from audiorank.export import onnx
from audiorank.export import pretrained
from audiorank.hear import tasks
from configs import other_modality


@pytest.fixture(scope='module')
def pictures_NYX():
  return np.random.default_rng(0).integers(0, 17, (40, 8, 8)) / 16.


def config(**changes):
  c = other_modality.get_config('smoke/size=en16-1,mask=0.75')
  c.monitor.valid_clips = 0
  c.mesh.data = 1
  c.update_from_flattened_dict(changes)
  return records.frozen(c)


def waves(pictures_NYX):
  return np.stack([images.wave(p, 2) for p in pictures_NYX])


def test_the_model_is_shown_the_patches_of_the_picture(pictures_NYX):
  c = config()
  wave_NS = waves(pictures_NYX)
  assert wave_NS.shape[1] == images.samples(16, 2) == config_lib.crop_samples(
      c.data.crop_seconds)
  x_NMT = np.asarray(audio.front(c.model, wave_NS / np.float32(32768)))
  assert x_NMT.shape == (40, 4, 16) and config_lib.patches(c) == 16
  patches_NLP = np.asarray(model.patchify(jnp.asarray(x_NMT), 1))
  for t in range(16):
    y, x = 2 * (t // 4), 2 * (t % 4)
    square = pictures_NYX[:, y:y + 2, x:x + 2].reshape(40, 4)
    # Half a step of int16, and its 32767 against our 32768.
    np.testing.assert_allclose(patches_NLP[:, t], 2 * square - 1, atol=5e-5)


def test_a_picture_has_as_many_columns_as_a_log_mel_has_frames():
  for samples in (320, 321, 479, 480, 2404):
    wave_BS = jnp.ones((1, samples))
    assert audio.pixels(wave_BS, 4).shape[2] == audio.log_mel(
        wave_BS).shape[2]


def test_only_the_pixels_are_seen(pictures_NYX):
  wave_NS = waves(pictures_NYX) / np.float32(32768)
  noisy_NS = wave_NS.copy()
  within_S = np.arange(wave_NS.shape[1]) % audio.HOP < 4
  noisy_NS[:, ~within_S] = .5
  np.testing.assert_array_equal(audio.pixels(wave_NS, 4),
                                audio.pixels(noisy_NS, 4))


def test_corpus_and_task_are_read_back(pictures_NYX, tmp_path):
  images.write_corpus(tmp_path / 'c', pictures_NYX, 2, {'of': 'a test'})
  wave_NS, source_N = data.sample(data.load(tmp_path / 'c'), 40, 2404, 0)
  assert {w.tobytes() for w in wave_NS} == {
      w.tobytes() for w in waves(pictures_NYX)}
  assert len(set(source_N)) == 40
  labels = [f'kind_{i % 2}' for i in range(40)]
  images.write_task(tmp_path / 't', 'kind', dict.fromkeys(
      ('train', 'valid', 'test'), (pictures_NYX, labels)), 2)
  task = tasks.load(tmp_path / 't')
  files, read = evaluate.clips(task, 'valid', 16_000)
  for file, wave_S in zip(files, read):
    i = int(file[:5])
    np.testing.assert_array_equal(
        audio.to_int16(wave_S), images.wave(pictures_NYX[i], 2))
    target = task.targets['valid'][list(task.files['valid']).index(file)]
    assert target.argmax() == i % 2 and target.sum() == 1


def test_filled_pictures_embed_as_they_do_alone(pictures_NYX):
  """Of many lengths one program: pictures of more patches beside smaller."""
  c = config(**{'model.target_frames': 32})
  state = train_state.init_state(c, sharding.mesh(1, 1))
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  several = [images.wave(pictures_NYX[i, :, :2 * (i % 4 + 1)].repeat(2, 0), 2)
             for i in range(4)]
  several += [images.wave(pictures_NYX[9].reshape(32, 2), 2)[:-320]]
  assert len({len(w) for w in several}) > embed.LENGTHS
  together = embed.scene(c, variables, several)
  alone = np.concatenate([embed.scene(c, variables, [w]) for w in several])
  np.testing.assert_allclose(together, alone, atol=1e-5)


def test_devices_do_not_change_how_pictures_embed(pictures_NYX):
  c = config()
  state = train_state.init_state(c, sharding.mesh(1, 1))
  variables = jax.device_get(
      {'params': state.params, 'batch_stats': state.batch_stats})
  wave_NS, on = waves(pictures_NYX), sharding.mesh(8, 1)
  alone_ND = embed.scene(c, variables, wave_NS)
  placed = jax.device_put(variables, sharding.place(variables, on))
  z_ND = embed.sharded(c.model, placed, wave_NS, on, batch=16)
  np.testing.assert_allclose(z_ND, alone_ND, atol=1e-5)


@pytest.mark.parametrize('picture, text', [
    (np.zeros((7, 8)), r'shape \(7, 8\): expected two multiples of 2'),
    (np.zeros(8), r'shape \(8,\)'), (np.full((8, 8), 2.), 'from 2 to 2'),
    (np.full((8, 8), np.nan), 'expected 0 to 1')])
def test_what_is_no_picture_is_refused(picture, text):
  with pytest.raises(ValueError, match=text):
    images.wave(picture, 2)


def test_large_patches_and_foreign_fronts_are_refused(tmp_path):
  with pytest.raises(ValueError, match='patches of 196 pixels: expected at'):
    images.wave(np.zeros((14, 14)), 14)
  with pytest.raises(ValueError,
                     match="model.frontend 'cepstrum': expected one"):
    train.check(config(**{'model.frontend': 'cepstrum'}), sharding.mesh(1, 1))
  with pytest.raises(ValueError, match='model.mels 200: model.frontend pixels'):
    train.check(config(**{'model.mels': 200}), sharding.mesh(1, 1))
  with pytest.raises(ValueError,
                     match="model.frontend 'pixels': expected 'log"):
    onnx.save(tmp_path / 'm.onnx', config(), {})
  with pytest.raises(ValueError,
                     match="model.frontend 'pixels': expected 'log"):
    pretrained.save_pretrained(tmp_path / 'm', config(), {})


def test_the_digits_are_written_once(tmp_path):
  pytest.importorskip('sklearn')
  corpus, folder = images.make(tmp_path)
  assert len(data.load(corpus).records) == 1000
  found = {f.name: tasks.load(f) for f in tasks.find(folder)}
  assert {n: len(t.labels) for n, t in found.items()} == {
      'digit-v1-full': 10, 'turn-v1-full': 4}
  assert [len(found['turn-v1-full'].files[s])
          for s in ('train', 'valid', 'test')] == [1000, 297, 500]
  stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.wav')}
  assert images.make(tmp_path) == (corpus, folder)
  assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.wav')}
