"""Tars of X-ARES tasks are read as they are."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from audiorank import evaluate
from audiorank.hear import staged
from audiorank.hear import tars


def sound(seed, rate=16_000, channels=1, kind='WAV'):
  rng = np.random.default_rng(seed)
  buffer = io.BytesIO()
  soundfile.write(buffer, .1 * rng.standard_normal((800, channels)), rate,
                  format=kind)
  return buffer.getvalue()


def write_tar(path, clips):
  """Writes {name: content} as a tar."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w') as tar:
    for name, content in clips.items():
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def samples(first, count=4, **kind):
  out = {}
  for i in range(first, first + count):
    out[f'a/clip{i}.wav'] = sound(i, **kind)
    out[f'a/clip{i}.json'] = {'id': i, 'label': ['x', 'y, z'][i % 2]}
  return out


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path / 'cache'))


def test_splits_are_in_the_names():
  assert [tars.split_of(name) for name in (
      'wds-audio-fold-1-000000', 'gtzan_fold_9_0000000', 'libricount_fold03',
      'fsd50k_train_000001', 'fsd50k_validation', 'fsd50k_eval_0',
      'wds-audio-test', 'dev-clean-0000', 'train-clean-100-000000', 'other'
  )] == ['fold01', 'fold09', 'fold03', 'train', 'valid', 'test', 'test',
         'valid', 'train', '']


def test_folds_become_a_task(tmp_path):
  for fold in (1, 2, 3):
    write_tar(tmp_path / 'env' / 'bells' / f'wds-audio-fold-{fold}-00.tar',
              samples(10 * fold))
    # What X-ARES itself left there.
    write_tar(tmp_path / 'env' / 'bells' / f'wds-encoded-fold-{fold}-0.tar',
              {'x.npy': b''})
  (folder,) = evaluate.named_folders(tmp_path / 'env', (), 'x')
  task = staged.load(folder, evaluate.clip_rate(folder, 16_000))
  assert task.kfold and task.labels == ('x', 'y, z')
  assert task.splits == ('fold01', 'fold02', 'fold03')
  waves = dict(staged.audio(task, 'fold02'))
  want_S, _ = soundfile.read(io.BytesIO(sound(21)), dtype='float32')
  np.testing.assert_array_equal(waves['a_clip21.wav'], want_S)
  row = task.files['fold02'].index('a_clip21.wav')
  assert task.targets['fold02'][row].tolist() == [0, 1]
  # Once: the second time it is there, and the tars are not opened.
  assert evaluate.named_folders(tmp_path / 'env', ['bells'], 'x') == [folder]
  assert evaluate.named_folders(tmp_path / 'env' / 'bells', (), 'x') == [folder]


def test_splits_other_formats_and_a_missing_validation(tmp_path):
  root = tmp_path / 'many'
  write_tar(root / 'many_train_0.tar', samples(0))
  other = {k.replace('.wav', '.flac'): v for k, v in samples(
      10, rate=8000, channels=2, kind='FLAC').items()}
  for name in ('a/clip10.json', 'a/clip12.json'):
    other[name]['label'] = 'x;y, z'
  write_tar(root / 'many_test_0.tar', other)
  (folder,) = evaluate.named_folders(root, (), 'x')
  task = staged.load(folder, 16_000)
  assert task.prediction_type == 'multilabel' and task.evaluation == ('mAP',)
  assert task.files['valid'] and sorted(task.files['valid']) == sorted(
      task.files['test'])
  # Two channels at 8 kHz became their mean at the task's rate.
  waves = dict(staged.audio(task, 'test'))
  assert {len(w) for w in waves.values()} == {1600}


@pytest.mark.parametrize('clips, message', [
    ({'a.wav': sound(0), 'a.json': {'text': 'b'}}, 'a.json has text: no label'),
    ({'a.wav': sound(0), 'a.json': {'label': [{'onset': 1}]}},
     'expected a word or a number'),
    ({'a.wav': sound(0)}, 'a lacks its sound file or its .json'),
    ({'a.wav': b'no', 'a.json': {'label': 'b'}}, 'a: '),
    ({'a.wav': sound(0), 'a.json': b'{'}, 'JSONDecodeError'),
    ({'a.wav': sound(0), 'a.json': {'label': 'b'}}, 'tars of train, expected')])
def test_what_is_no_such_task_is_one_line(tmp_path, clips, message):
  write_tar(tmp_path / 'one_train.tar', clips)
  with pytest.raises(ValueError, match=message) as error:
    evaluate.named_folders(tmp_path, (), 'x')
  assert '\n' not in str(error.value)
  (tmp_path / 'one_train.tar').write_bytes(b'no tar')
  with pytest.raises(ValueError, match='one_train.tar: ReadError'):
    evaluate.named_folders(tmp_path, (), 'x')


def test_long_clips_are_cut_into_the_crops_of_xares(tmp_path, monkeypatch):
  # 800 samples at 16 kHz: two crops of 20 ms, and 10 ms that are left out. The
  # second is taken where it begins a batch.
  monkeypatch.setitem(tars.CROPS, 'voxceleb1', .02)
  monkeypatch.setattr(tars, 'BATCH', 3)
  for name, first in (('train', 0), ('test', 10)):
    write_tar(tmp_path / 'voxceleb1' / f'{name}_0.tar', samples(first))
  (folder,) = evaluate.named_folders(tmp_path, (), 'x')
  task = staged.load(folder, 16_000)
  assert sorted(task.files['train']) == [
      'a_clip0-0.wav', 'a_clip1-0.wav', 'a_clip1-1.wav', 'a_clip2-0.wav',
      'a_clip3-0.wav']
  # Crops of one clip are one unit of the intervals.
  assert set(task.groups['train']) == {f'a_clip{i}' for i in range(4)}
  whole_S, _ = soundfile.read(io.BytesIO(sound(1)), dtype='float32')
  waves = dict(staged.audio(task, 'train'))
  for k in range(2):
    np.testing.assert_allclose(waves[f'a_clip1-{k}.wav'],
                               whole_S[320 * k:320 * (k + 1)], atol=2 ** -15)
  assert task.metadata['weight'] == 2000
  # A clip that is shorter than a crop is padded; another length is another
  # task in the cache.
  monkeypatch.setitem(tars.CROPS, 'voxceleb1', .06)
  (longer,) = evaluate.named_folders(tmp_path, (), 'x')
  assert longer != folder
  waves = dict(staged.audio(staged.load(longer, 16_000), 'train'))
  assert {len(wave_S) for wave_S in waves.values()} == {960}
  assert not waves['a_clip1-0.wav'][800:].any()
