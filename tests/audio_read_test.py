"""Reading sound files: exactness, formats, resampling, refusal."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from audiorank import audio
from audiorank import decode


def noise(samples, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return 0.2 * rng.standard_normal((samples, channels)).astype(np.float32)


def encoded(wave_SC, rate, form, subtype=None):
  file = io.BytesIO()
  soundfile.write(file, wave_SC, rate, format=form, subtype=subtype)
  return file.getvalue()


def test_every_16_bit_value_comes_back_exact():
  pcm_S = np.arange(-2**15, 2**15).astype(np.int16)
  wave_S = audio.read(encoded(pcm_S, 16000, 'WAV', 'PCM_16'))
  assert wave_S.dtype == np.float32 and wave_S.ndim == 1
  np.testing.assert_array_equal(audio.to_int16(wave_S), pcm_S)
  np.testing.assert_array_equal(wave_S * 2**15, pcm_S)


def test_path_file_object_and_bytes_read_the_same(tmp_path):
  data = encoded(noise(9000), 22050, 'FLAC')
  path = tmp_path / 'né à.flac'
  path.write_bytes(data)
  want_S = audio.read(path)
  np.testing.assert_array_equal(audio.read(str(path)), want_S)
  np.testing.assert_array_equal(audio.read(data), want_S)
  with open(path, 'rb') as file:
    np.testing.assert_array_equal(audio.read(file), want_S)


@pytest.mark.parametrize('form,subtype,rate,channels,db', [
    ('WAV', 'PCM_24', 48000, 2, -80), ('WAV', 'FLOAT', 8000, 1, -80),
    ('FLAC', 'PCM_16', 44100, 6, -80), ('AIFF', 'PCM_16', 32000, 1, -80),
    ('OGG', 'VORBIS', 44100, 2, -20), ('OGG', 'OPUS', 48000, 2, -20),
    ('MP3', None, 44100, 1, -20)])
def test_a_tone_survives_any_format(form, subtype, rate, channels, db):
  """Against the tone sampled at 16 kHz; lossy codecs are held to 20 dB."""
  at = lambda r: 0.4 * np.sin(2 * np.pi * 440 * np.arange(2 * r) / r)
  wave_SC = np.repeat(at(rate)[:, None], channels, 1)
  got_S = audio.read(encoded(wave_SC, rate, form, subtype))
  assert abs(len(got_S) - 32000) <= 3000  # codecs pad
  # Codecs shift by their delay: the best of a few shifts counts.
  middle = slice(12000, 20000)
  want_S = at(16000)[middle]
  errors = [np.mean((got_S[12000 + s:20000 + s] - want_S)**2)
            for s in range(-2500, 2500 if db > -80 else -2499)] + [
                np.mean((got_S[middle] - want_S)**2)]
  assert 10 * np.log10(min(errors) / np.mean(want_S**2)) < db


def test_blocks_resample_as_one_piece_would(monkeypatch):
  wave_S = noise(100_001)[:, 0]
  data = encoded(wave_S, 44100, 'WAV', 'FLOAT')
  want_S = np.clip(soxr.resample(wave_S, 44100, 16000, quality='HQ'), -1, 1)
  for block in (997, 2**18):
    monkeypatch.setattr(audio, 'BLOCK', block)
    np.testing.assert_allclose(audio.read(data), want_S, rtol=0, atol=1e-7)


@pytest.mark.parametrize('form,subtype', [('MP3', None), ('OGG', 'VORBIS')])
def test_blocks_of_a_lossy_file_have_its_samples(monkeypatch, form, subtype):
  """soundfile seeks after every read, which garbles an MP3 for some frames."""
  content = encoded(noise(6 * 16000), 16000, form, subtype)
  want_S, _ = soundfile.read(io.BytesIO(content), dtype='float32')
  monkeypatch.setattr(decode, 'BLOCK', 5000)
  # mpg123 rounds float32 otherwise after the seek of soundfile.read.
  np.testing.assert_allclose(decode.read(content, 16000),
                             np.clip(want_S, -1, 1), rtol=0, atol=3e-7)


def test_channels_are_averaged_and_overshoot_is_clipped():
  wave_SC = np.stack([np.full(50, 1.6), np.full(50, 1.0)], 1)
  wave_SC[25:, 1] = 0
  got_S = audio.read(encoded(wave_SC, 16000, 'WAV', 'FLOAT'))
  np.testing.assert_allclose(got_S, [1] * 25 + [0.8] * 25, rtol=1e-6)


@pytest.mark.parametrize('rate', [1000, 2**31 - 1])
def test_odd_rates_stay_bounded(rate):
  data = encoded(noise(50_000), rate, 'WAV', 'FLOAT')
  parts = list(audio.blocks(data))
  assert abs(sum(map(len, parts)) - 50_000 * 16000 / rate) <= 1
  assert max(map(len, parts), default=0) <= 2 * audio.BLOCK


# Float files carry the second of their writing, so the bytes cannot name the
# cases: two workers would collect different tests.
@pytest.mark.parametrize('data,why', [
    (b'', 'undecodable'), (b'RIFF' + bytes(99), 'undecodable'),
    (encoded(noise(0), 16000, 'WAV'), 'empty'),
    (encoded(noise(9), 999, 'WAV'), 'absurd rate: 999 Hz'),
    (encoded(np.float32([0, np.nan, 0]), 16000, 'WAV', 'FLOAT'), 'non-finite'),
    (encoded(np.float32([0, -np.inf]), 16000, 'WAV', 'FLOAT'), 'non-finite'),
    (encoded(np.float32([0, 1e29]), 16000, 'WAV', 'FLOAT'), 'wrong magnitude'),
    (encoded(np.float32([0, 20000]), 8000, 'WAV', 'FLOAT'), 'wrong magnitude'),
], ids=['nothing', 'header', 'no-samples', 'rate', 'nan', 'infinity', 'huge',
        'loud'])
def test_what_cannot_be_used_is_refused_by_name(tmp_path, data, why):
  path = tmp_path / 'bad.wav'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f'bad.wav: {why}') as caught:
    audio.read(path)
  assert '\n' not in str(caught.value) and '0x' not in str(caught.value)


def test_a_missing_file_is_named():
  with pytest.raises(FileNotFoundError, match='nowhere.wav: no such file'):
    audio.read('nowhere.wav')


def test_a_file_longer_than_asked_for_is_refused():
  data = encoded(noise(32000), 16000, 'WAV')
  assert sum(map(len, audio.blocks(data, max_seconds=2))) == 32000
  with pytest.raises(ValueError, match='too long: more than 1.9 s'):
    list(audio.blocks(data, max_seconds=1.9))


def test_a_wave_is_written_whole_or_the_cause_is_told(tmp_path):
  """A file-size limit stands in for a full disk: the same errors."""
  path = tmp_path / 'a.flac'
  pcm_S = audio.to_int16(noise(20_000)[:, 0])
  decode.write(path, pcm_S, 16000, 'FLAC')
  np.testing.assert_array_equal(audio.to_int16(audio.read(path)), pcm_S)
  code = ('import resource, sys, numpy as np; from audiorank import decode\n'
          'resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n'
          'for form in ("WAV", "FLAC"):\n'
          '  try: decode.write(f"{sys.argv[1]}/b", np.random.default_rng(0)'
          '.uniform(-1, 1, 20000), 16000, form)\n'
          '  except OSError as error: print(error)\n')
  done = subprocess.run([sys.executable, '-c', code, tmp_path], check=True,
                        capture_output=True, text=True)
  lines = done.stdout.splitlines()
  assert len(lines) == 2 and all(
      'File too large' in line and str(tmp_path / 'b') in line
      for line in lines), done.stdout
  assert [p.name for p in tmp_path.iterdir()] == ['a.flac']
