"""Nothing is lost in silence: what a file promises is there, or it is refused.

Every input is made here, so that its true length is known.
"""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from audiorank import audio
from audiorank import decode
from audiorank.containers import mpeg

RATES = {'opus': 48000, 'mp3': 44100}
WAYS = {
    'wav': ('WAV', 'PCM_16'), 'wav float': ('WAV', 'FLOAT'),
    'wav adpcm': ('WAV', 'MS_ADPCM'), 'rf64': ('RF64', 'PCM_16'),
    'w64': ('W64', 'PCM_16'), 'aiff': ('AIFF', 'PCM_16'),
    'svx': ('SVX', 'PCM_16'), 'au': ('AU', 'PCM_16'), 'caf': ('CAF', 'PCM_16'),
    'alac': ('CAF', 'ALAC_16'), 'nist': ('NIST', 'PCM_16'),
    'voc': ('VOC', 'PCM_16'), 'avr': ('AVR', 'PCM_16'),
    'flac': ('FLAC', 'PCM_16'), 'flac 24': ('FLAC', 'PCM_24'),
    'ogg': ('OGG', 'VORBIS'), 'opus': ('OGG', 'OPUS'), 'mp3': ('MP3', None)}
SECONDS = 2.


def wave(seconds=SECONDS, rate=16000, seed=0):
  time_S = np.arange(int(seconds * rate)) / rate
  noise_S = np.random.default_rng(seed).standard_normal(len(time_S))
  return .3 * np.sin(2 * np.pi * 220 * time_S) + .05 * noise_S


@pytest.fixture(scope='module')
def sounds():
  """{name: (bytes, seconds as they are)} of every way to write."""
  out = {}
  for name, (form, subtype) in WAYS.items():
    rate, file = RATES.get(name, 16000), io.BytesIO()
    soundfile.write(file, wave(rate=rate), rate, format=form, subtype=subtype)
    out[name] = file.getvalue()
  return out


def seconds(data):
  return len(audio.read(data)) / 16000


def refusal(data):
  with pytest.raises(ValueError) as caught:
    audio.read(data)
  return str(caught.value).partition('bytes>: ')[2]


@pytest.mark.parametrize('name', WAYS)
def test_whole_files_are_read_whole(sounds, name):
  # ADPCM and MP3 come in blocks and frames, the last one filled up.
  assert SECONDS - 1e-9 <= seconds(sounds[name]) <= SECONDS + .08


@pytest.mark.parametrize('name', WAYS)
@pytest.mark.parametrize('part', [.3, .5, .97])
def test_half_a_download_is_refused_whatever_the_format(sounds, name, part):
  data = sounds[name]
  why = refusal(data[:int(part * len(data))])
  # ALAC's table of packets lies at the end: nothing of it can be read.
  assert why.startswith('cut off: ') or name == 'alac', why


@pytest.mark.parametrize('name', WAYS)
def test_two_files_joined_are_read_whole_or_refused(sounds, name):
  data = sounds[name] + sounds[name]
  if name == 'mp3':  # Frames go on after frames.
    assert 2 * SECONDS - .1 < seconds(data) < 2 * SECONDS + .2
  else:
    assert refusal(data).startswith('several parts: ')


@pytest.mark.parametrize('name', WAYS)
def test_zeros_before_and_after_change_nothing(sounds, name):
  want_S = audio.read(sounds[name])
  got_S = audio.read(bytes(3001) + sounds[name])
  np.testing.assert_array_equal(got_S, want_S)
  after_S = audio.read(sounds[name] + bytes(600))
  np.testing.assert_array_equal(after_S[:len(want_S)], want_S)


def test_flac_of_unknown_and_of_wrong_total(sounds):
  data = bytearray(sounds['flac'])
  about = int.from_bytes(data[18:26], 'big')
  total = about & ((1 << 36) - 1)
  assert total == 32000
  want_S = audio.read(bytes(data))
  for wrong in (0, 100, 31999):
    data[18:26] = (about - total + wrong).to_bytes(8, 'big')
    np.testing.assert_array_equal(audio.read(bytes(data)), want_S)
    assert refusal(bytes(data[:len(data) // 2])).startswith('cut off: ')
  data[18:26] = (about - total + 40000).to_bytes(8, 'big')
  assert refusal(bytes(data)).startswith('cut off: 2.000 of 2.500 s')


@pytest.mark.parametrize('name,places', [
    ('wav', [(40, '<I', s) for s in (0, 2**32 - 1, 2**31 - 37)]),
    ('au', [(8, '>I', s) for s in (0, 2**32 - 1)])])
def test_recordings_that_were_never_closed(sounds, name, places):
  want_S = audio.read(sounds[name])
  for at, code, size in places:
    data = bytearray(sounds[name])
    data[at:at + struct.calcsize(code)] = struct.pack(code, size)
    np.testing.assert_array_equal(audio.read(bytes(data)), want_S)


def test_w64_that_was_never_closed(sounds):
  data = bytearray(sounds['w64'])
  at = data.index(b'data') + 16
  data[at:at + 8] = bytes(8)
  np.testing.assert_array_equal(audio.read(bytes(data)),
                                audio.read(sounds['w64']))


def test_aiff_that_was_never_closed(sounds):
  data = bytearray(sounds['aiff'])
  frames, size = data.index(b'COMM') + 10, data.index(b'SSND') + 4
  data[frames:frames + 4] = data[size:size + 4] = bytes(4)
  np.testing.assert_array_equal(audio.read(bytes(data)),
                                audio.read(sounds['aiff']))


def test_aiff_that_says_more_frames_than_it_has_bytes_for(sounds):
  data = bytearray(sounds['aiff'])
  frames = data.index(b'COMM') + 10
  count, = struct.unpack('>I', data[frames:frames + 4])
  data[frames:frames + 4] = struct.pack('>I', 2 * count)
  with pytest.raises(ValueError, match=f'cut off: {count} of {2 * count} '
                     'frames are there'):
    audio.read(bytes(data))


def frame_length(data):
  return mpeg.read_frame(data[:4]).length


@pytest.mark.parametrize('rate', [16000, 44100])
def test_mp3_without_a_count_is_counted(rate):
  quiet_S = wave(8, rate)
  quiet_S[:len(quiet_S) // 2] *= .001
  for wave_S in (wave(8, rate), quiet_S):
    file = io.BytesIO()
    soundfile.write(file, wave_S, rate, format='MP3')
    data = file.getvalue()
    bare = data[frame_length(data):]  # Of variable bit rate, no Xing frame.
    assert 8 <= seconds(bare) < 8.2
    assert 8 <= seconds(bytes(2000) + bare) < 8.2
    assert refusal(bare[:-5]).startswith('cut off: ')


def test_mp3_among_tags_and_garbage(sounds):
  data = sounds['mp3']
  # 200 bytes of 0xFF look like the beginning of frames.
  tag = b'ID3\x04\0\0\0\0\x01\x48' + b'\xff' * 200
  want = seconds(data)
  np.testing.assert_array_equal(audio.read(tag + data), audio.read(data))
  assert seconds(tag + data + b'TAG' + bytes(125)) == want
  end = frame_length(data)
  for _ in range(20):
    end += frame_length(data[end:])
  torn = data[:end] + b'garbage ' * 40 + data[end:]
  assert abs(seconds(torn) - want) < .1


def test_ogg_with_a_page_lost_in_the_middle(sounds):
  data = sounds['ogg']
  pages = [i for i in range(len(data)) if data[i:i + 4] == b'OggS']
  lost = data[:pages[3]] + data[pages[4]:]
  assert refusal(lost).startswith('cut off: pages 3 to 3 of it are missing')


def test_wav_with_chunks_behind_its_samples(sounds):
  note = b'LIST' + struct.pack('<I', 4096) + b'x' * 4096
  assert seconds(sounds['wav'] + note) == SECONDS
  assert seconds(sounds['wav'] + b'id3 \x05\0\0\0hello\0') == SECONDS
  empty = sounds['wav'][:40] + bytes(4) + note
  assert refusal(empty).startswith('empty')
  stale = bytearray(sounds['wav'])
  stale[40:44] = struct.pack('<I', 2000)  # As saved half a minute ago.
  assert refusal(bytes(stale)).startswith('several parts: 62000 bytes follow')


@pytest.mark.parametrize('data,why', [
    (b'\0\0\0\x20ftypM4A ' + bytes(99), 'an MP4 or M4A file'),
    (b'<!DOCTYPE html><html>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1', 'a pointer of git-lfs'),
    (b'PK\x03\x04' + bytes(99), 'a zip archive'),
    (b'\x1aE\xdf\xa3' + bytes(99), 'Matroska')])
def test_what_is_no_sound_is_called_what_it_is(data, why):
  assert refusal(data).startswith(f'undecodable: {why}')


def test_a_pipe_is_not_waited_for(tmp_path):
  import os
  os.mkfifo(tmp_path / 'a.wav')
  with pytest.raises(ValueError, match='a.wav: not a regular file'):
    audio.read(tmp_path / 'a.wav')


def test_hostile_bytes_are_answered_quickly():
  """What looks like frames everywhere must not take long to be looked at."""
  code = ('import time; from audiorank import decode; t = time.time()\n'
          'for d in (b"\\xff\\xfb\\x90", b"\\xff\\xe3\\x18\\xc4", b"OggS",'
          'b"RIFF", b"\\xff"):\n'
          '  try: decode.read(d * (2**21 // len(d)))\n'
          '  except ValueError: pass\n'
          'print(time.time() - t)')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True,
                        text=True, timeout=60, check=True)
  assert float(done.stdout) < 30


@pytest.mark.parametrize('name', ['flac', 'ogg', 'opus', 'mp3'])
def test_another_decoder_finds_the_same_length(sounds, name):
  av = pytest.importorskip('av')
  with av.open(io.BytesIO(sounds[name])) as file:
    samples = sum(frame.samples for frame in file.decode(audio=0))
  rate = RATES.get(name, 16000)
  # ffmpeg keeps an encoder's delay where libsndfile cuts it.
  assert abs(samples / rate - seconds(sounds[name])) < .06


@pytest.mark.parametrize('form,subtype,rate', [
    ('MP3', None, 16000), ('MP3', None, 22050), ('OGG', 'VORBIS', 16000),
    ('OGG', 'OPUS', 48000)])
def test_another_decoder_finds_the_same_samples(form, subtype, rate):
  """A sound longer than a block of `decode.blocks`, to half a step of int16."""
  av = pytest.importorskip('av')
  file, count = io.BytesIO(), decode.BLOCK + rate
  with soundfile.SoundFile(file, 'w', rate, 1, format=form,
                           subtype=subtype) as out:
    wave_S = wave(count / rate, rate)
    for begin in range(0, len(wave_S), rate):  # libvorbis takes no more.
      out.write(wave_S[begin:begin + rate])
  ours_S = audio.read(file.getvalue(), rate)
  with av.open(io.BytesIO(file.getvalue())) as theirs:
    wanted_S = np.concatenate([
        frame.to_ndarray()[0] for frame in theirs.decode(audio=0)])
  # ffmpeg may keep the encoder's delay: the tone and the noise tell which.
  part_S = ours_S[rate:rate + 2000]
  error = [np.abs(wanted_S[rate + shift:][:2000] - part_S).max()
           for shift in range(-1200, 1201)]
  shift = int(np.argmin(error)) - 1200
  assert abs(len(ours_S) - count) < rate // 10
  count = min(len(ours_S), len(wanted_S) - shift)
  assert count > decode.BLOCK
  first = max(0, -shift)
  np.testing.assert_allclose(
      ours_S[first:count], wanted_S[first + shift:count + shift], rtol=0,
      atol=2e-5)
