"""The recipes of audiorank/prepare/README.md on trees of the same layout."""

import io
import os
import pathlib
import re
import shlex
import tarfile

import numpy as np
import pytest
import soundfile

from audiorank import data
from audiorank import prepare

README = pathlib.Path(prepare.__file__).parent / 'README.md'


def sound(seed, form='FLAC', rate=16000):
  rng, file = np.random.default_rng(seed), io.BytesIO()
  soundfile.write(file, .1 * rng.standard_normal(rate // 5), rate, format=form)
  return file.getvalue()


def put(root, name, content):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())


def librispeech(root):
  for part in ('train-clean-100', 'dev-other'):
    for i, (speaker, chapter) in enumerate(((19, 198), (19, 227), (26, 495))):
      for line in range(2):
        put(root, f'LibriSpeech/{part}/{speaker}/{chapter}/'
            f'{speaker}-{chapter}-{line:04d}.flac', sound(i * 9 + line))
      put(root, f'LibriSpeech/{part}/{speaker}/{chapter}/'
          f'{speaker}-{chapter}.trans.txt', 'HELLO')
  put(root, 'LibriSpeech/README.TXT', 'x')
  return 12, 3


def common_voice(root):
  rows = ['client_id\tpath\tsentence_id\tsentence\tup_votes']
  for i in range(6):
    name = f'common_voice_en_{i}.mp3'
    put(root, f'en/clips/{name}', sound(i, 'MP3', 48000))
    rows.append(f'{"ab" * 30}{i // 3}\t{name}\t9f\tHe said "no, thanks".\t2')
  put(root, 'en/validated.tsv', '\n'.join(rows) + '\n')
  return 6, 2


def fsd50k(root):
  for i in range(4):
    put(root, f'FSD50K.dev_audio/{64760 + i}.wav', sound(i, 'WAV', 44100))
  return 4, 4


def fma(root):
  rows = ['track_id,album_id,album_title,artist_id']
  for i in (2, 3, 5, 134):
    put(root, f'fma_large/000/{i:06d}.mp3', sound(i, 'MP3', 44100))
    rows.append(f'{i},{1 if i < 5 else 6},"AWOL, a way",1')
  put(root, 'fma_large/checksums', 'x')
  put(root, 'fma_metadata/raw_tracks.csv', '\n'.join(rows) + '\n')
  return 4, 2


def vggsound(root):
  for video in ('---g-f_I2yQ', '--0PQM4-hqg'):
    for start in (1, 30):
      put(root, f'vggsound/audio/{video}_{start:06d}.flac', sound(start))
  return 4, 2


def audioset(root):
  for shard in range(2):
    path = root / f'audioset/data/unbal_train{shard:03d}.tar'
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
      for i in range(3):
        info = tarfile.TarInfo(f'audio/unbal_train/--4gqARaE{shard}{i}.flac')
        info.size = len(content := sound(9 * shard + i, rate=48000))
        tar.addfile(info, io.BytesIO(content))
  return 6, 6


LAYOUTS = {'librispeech': librispeech, 'common_voice': common_voice,
           'fsd50k': fsd50k, 'fma': fma, 'vggsound_corpus': vggsound,
           'audioset_corpus': audioset}


def commands():
  """{output: flags} of the commands that prepare a public set."""
  text = README.read_text(encoding='utf-8').partition('## Public datasets')[2]
  blocks = re.findall(r'```sh\n(python -m launch.prepare.*?)```', text, re.S)
  out = {}
  for block in blocks:
    words = shlex.split(block.replace('\\\n', ' '))[3:]
    flags = dict(word.removeprefix('--').split('=', 1) for word in words)
    out[flags['out']] = flags
  return out


def test_every_recipe_has_a_layout():
  assert set(commands()) == set(LAYOUTS)


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_recipe_reads_every_file_and_knows_its_recordings(name, tmp_path):
  files, recordings = LAYOUTS[name](tmp_path)
  flags = commands()[name]
  for field in ('audio', 'out', 'manifest'):
    if field in flags:
      flags[field] = os.path.join(tmp_path, flags[field])
  about = prepare.run(flags.pop('audio'), flags.pop('out'), workers=1, **flags)
  assert (about['files'], about['sources']) == (files, recordings)
  assert about['refused'] == {} and about['suspects'] == {}
  assert not about['sources_from'].get('unmatched')
  corpus = data.load(tmp_path / name)
  assert data.verify(corpus) == []
  assert corpus.hours == pytest.approx(files * .2 / 3600, rel=.35)
  if name == 'librispeech':
    assert set(corpus.records['category']) == {'train-clean-100', 'dev-other'}
