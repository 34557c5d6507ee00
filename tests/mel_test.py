"""The front end against librosa, torchaudio's numbers, and its promises."""

import jax
import librosa
import numpy as np
import pytest

from audiorank import audio
from audiorank import sharding


def noise(seed=0, B=2, S=16_000):
  rng = np.random.default_rng(seed)
  return rng.uniform(-.5, .5, (B, S)).astype(np.float32)


def reference(wave_S):
  return librosa.feature.melspectrogram(
      y=wave_S.astype(np.float64), sr=16_000, n_fft=512, hop_length=160,
      win_length=512, window='hann', center=True, pad_mode='reflect', power=2,
      n_mels=64, fmin=0, fmax=8000, htk=True, norm=None, dtype=np.float64)


@pytest.mark.filterwarnings('ignore:n_fft=512 is too large')
@pytest.mark.parametrize('S', [257, 480, 16_000, 16_001, 16_159, 16_160])
def test_mel_equals_librosa(S):
  wave_BS = noise(S=S)
  mel_BMT = np.asarray(audio.mel_power(wave_BS))
  assert mel_BMT.shape == (2, 64, 1 + S // 160)
  want_BMT = np.stack([reference(w) for w in wave_BS])
  # Float32 transforms of 512 samples: relative errors grow only where a bin
  # almost cancels.
  np.testing.assert_allclose(mel_BMT, want_BMT, rtol=1e-4)
  db_BMT = np.asarray(audio.log_mel(wave_BS))
  np.testing.assert_allclose(
      db_BMT, np.stack([librosa.power_to_db(m, top_db=120) for m in want_BMT]),
      atol=5e-3)


def test_filters_equal_librosa():
  # Ours round where torch does: a corner of a triangle by up to 1e-7 of its
  # frequency, and triangles are 1/20 of their frequency wide.
  np.testing.assert_allclose(
      audio.mel_filters(),
      librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=0, fmax=8000,
                          htk=True, norm=None), atol=1e-5)


def test_front_end_equals_torchaudio(shared):
  z = np.load(shared / 'fixtures' / 'dasheng' / 'parity_tiny.npz')
  # Torchaudio computes the band edges in float32, where one unit in the last
  # place of an edge moves its filter by 5e-6.
  np.testing.assert_allclose(
      audio.mel_filters().T, z['w/encoder.front_end.0.mel_scale.fb'],
      atol=1e-5)
  np.testing.assert_allclose(
      audio.hann(), z['w/encoder.front_end.0.spectrogram.window'], atol=3e-7)
  wave_BS = z['audio_i16'].astype(np.float32) / 32767
  mel_BMT = np.asarray(audio.mel_power(wave_BS))
  assert np.abs(mel_BMT - z['mel']).max() < 5e-6 * z['mel'].max()
  for clamp, name in (('batch', 'db'), ('clip', 'db_single')):
    db_BMT = np.asarray(audio.log_mel(wave_BS, clamp=clamp))
    np.testing.assert_allclose(db_BMT, z[name], atol=5e-3)


def test_mel_equals_torchaudio_given_its_filters(shared, monkeypatch):
  """All that is left is the order of float32 sums."""
  z = np.load(shared / 'fixtures' / 'dasheng' / 'parity_tiny.npz')
  monkeypatch.setattr(audio, 'mel_filters', lambda: z[
      'w/encoder.front_end.0.mel_scale.fb'].T)
  mel_BMT = np.asarray(audio.mel_power(
      z['audio_i16'].astype(np.float32) / 32767))
  assert np.abs(mel_BMT - z['mel']).max() < 1e-6 * z['mel'].max()


def test_silence_is_finite():
  wave_BS = np.zeros((1, 8000), np.float32)
  np.testing.assert_array_equal(np.asarray(audio.log_mel(wave_BS)), -100.)


@pytest.mark.parametrize('band', [3, 20, 40, 62])
def test_a_tone_lights_its_band(band):
  mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 66)
  hz = 700 * (10 ** (mels[band + 1] / 2595) - 1)
  wave_S = .5 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000)
  db_BMT = np.asarray(audio.log_mel(wave_S[None].astype(np.float32)))
  # Below 1 kHz a band is narrower than the window's main lobe.
  at_T = db_BMT[0, :, 5:-5].argmax(0)
  assert np.abs(at_T - band).max() <= (1 if band < 10 else 0)


def test_a_clip_does_not_hear_its_batch():
  quiet_S, loud_S = noise(1)[0] * 1e-6, noise(2)[0]
  both_BS = np.stack([quiet_S, loud_S])
  alone = np.asarray(audio.log_mel(both_BS[:1]))
  np.testing.assert_allclose(
      np.asarray(audio.log_mel(both_BS))[:1], alone, atol=1e-4)
  clamped = np.asarray(audio.log_mel(both_BS, clamp='batch'))
  assert clamped.min() >= clamped.max() - 120 - 1e-4
  assert clamped[0].min() > alone.min() + 1


def test_refusals():
  with pytest.raises(ValueError, match="clamp 'clips': expected 'clip'"):
    audio.log_mel(noise(), clamp='clips')
  with pytest.raises(ValueError, match='256 samples'):
    audio.log_mel(noise(S=256))


def test_clips_one_by_one_are_a_batch():
  """The CPU's loop over clips against the form that other chips take."""
  wave_BS = noise(B=6, S=5_000)
  np.testing.assert_allclose(audio.mel_power(wave_BS),
                             audio._at_once(wave_BS), rtol=1e-5, atol=1e-12)


def test_devices_keep_to_their_own_clips():
  on = sharding.mesh(8, 1)
  wave_BS = noise(B=24, S=5_000)
  with jax.set_mesh(on):
    placed_BS = jax.device_put(wave_BS, sharding.rows(on))
    program = jax.jit(audio.log_mel).lower(placed_BS).compile()
    mel_BMT = program(placed_BS)
  for gather in ('all-gather', 'all-to-all', 'collective-permute'):
    assert gather not in program.as_text()
  assert mel_BMT.sharding.is_equivalent_to(sharding.rows(on), 3)
  np.testing.assert_allclose(mel_BMT, audio.log_mel(wave_BS), atol=1e-3)


def test_a_random_gain_is_uniform_in_decibels_and_clips_nothing():
  wave_BS = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(
      np.float32)
  loud_BS = audio.random_gain(jax.random.key(0), wave_BS, -6., 10.)
  ratio_BS = np.asarray(loud_BS) / wave_BS
  np.testing.assert_allclose(ratio_BS, ratio_BS[:, :1].repeat(3, 1), rtol=1e-5)
  db_B = np.sort(20 * np.log10(ratio_BS[:, 0]))
  # Kolmogorov's distance to the uniform law, at the level of 1e-4.
  even_B = (np.arange(4000) + .5) / 4000
  assert np.abs((db_B + 6) / 16 - even_B).max() < 2.2 / np.sqrt(4000)
  assert np.abs(loud_BS).max() > 1
