"""Task folders: read in the kit's order, refused with one clear line."""

import json

import numpy as np
import pytest
import soundfile

from audiorank.hear import staged
from audiorank.hear import tasks


def write(folder, clips, labels, rate=16000, **metadata):
  """A task folder; `clips` maps split -> file -> labels (or events)."""
  folder.mkdir(parents=True, exist_ok=True)
  kfold = 'train' not in clips
  description = {
      'task_name': 'toy', 'version': 'v1', 'mode': 'full',
      'embedding_type': 'scene', 'prediction_type': 'multiclass',
      'split_mode': 'presplit_kfold' if kfold else 'trainvaltest',
      'splits': list(clips), 'sample_duration': 0.01,
      'evaluation': ['top1_acc'], **metadata}
  (folder / 'task_metadata.json').write_text(json.dumps(description))
  (folder / 'labelvocabulary.csv').write_text(
      'idx,label\n' + ''.join(f'{i},{l}\n' for i, l in enumerate(labels)))
  for split, files in clips.items():
    (folder / f'{split}.json').write_text(json.dumps(files))
    place = folder / str(rate) / split
    place.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
      soundfile.write(place / file, np.full(160, i / 100), rate)
  return folder


def toy(tmp_path, **metadata):
  files = lambda s, n: {f'{s}{i}.wav': [str(i % 2)] for i in range(n)}
  return write(tmp_path / 'toy-v1-full', {
      'train': files('a', 6), 'valid': files('b', 4), 'test': files('c', 4)},
               ['0', '1'], **metadata)


def test_order_and_targets_equal_the_kit(shared, tmp_path):
  reference = json.loads(
      (shared / 'fixtures/hear/official_runs.json').read_text())
  for name in ('toymc', 'toyml'):
    ref = reference[name]
    labels = [row.split(',')[1] for row in
              ref['labelvocabulary'].split()[1:]]
    folder = write(tmp_path / name, ref['splits'], labels, **ref['metadata'])
    task = tasks.load(folder)
    assert task.name == name
    for split in task.splits:
      assert list(task.files[split]) == ref['memmap_file_order'][split]
      named = [{task.labels[c] for c in np.flatnonzero(y_C)}
               for y_C in task.targets[split]]
      assert named == [set(l) for l in ref['target_labels'][split]]


def test_frame_targets_equal_the_kit(shared, tmp_path):
  reference = json.loads(
      (shared / 'fixtures/hear/official_runs.json').read_text())['toyev']
  labels = [row.split(',')[1] for row in
            reference['labelvocabulary'].split()[1:]]
  task = tasks.load(write(tmp_path / 'toyev', reference['splits'], labels,
                          **reference['metadata']))
  for split in task.splits:
    rows = reference['filename_timestamps'][split]
    assert list(dict.fromkeys(f for f, _ in rows)) == list(task.files[split])
    y_NC = np.concatenate([
        tasks.frame_targets(found, task.labels,
                            [ms for name, ms in rows if name == file])
        for file, found in zip(task.files[split], task.targets[split])])
    named = [{task.labels[c] for c in np.flatnonzero(y_C)} for y_C in y_NC]
    assert named == [set(l) for l in reference['target_labels'][split]]


def test_numbers_as_labels_and_audio(tmp_path):
  files = lambda s: {f'{s}{i}.wav': [i] for i in range(3)}
  folder = write(tmp_path / 't', {s: files(s) for s in ('f2', 'f0', 'f1')},
                 [0, 1, 2])
  task = tasks.load(folder)
  assert task.kfold
  assert task.splits == ('f2', 'f0', 'f1')
  clips = dict(tasks.audio(task, 'f0'))
  assert list(clips) == list(task.files['f0'])
  for file, wave_S in clips.items():
    assert wave_S.dtype == np.float32
    # 16-bit PCM: the clip's constant, to one step.
    np.testing.assert_allclose(wave_S, int(file[2]) / 100, atol=2 ** -15)
    row_C = task.targets['f0'][task.files['f0'].index(file)]
    assert row_C.tolist() == np.eye(3)[int(file[2])].tolist()


def test_folds_rotate(tmp_path):
  splits = {f'fold{i:02d}': {f'{i}.wav': ['x'], f'{i}b.wav': ['y']}
            for i in range(4)}
  task = tasks.load(write(tmp_path / 't', splits, ['x', 'y']))
  got = tasks.folds(task)
  assert [test for _, _, test in got] == sorted(splits)
  assert got[3] == (('fold01', 'fold02'), 'fold00', 'fold03')
  for train, valid, test in got:
    assert sorted([*train, valid, test]) == sorted(splits)


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel'])
def test_a_split_of_one_class_is_refused_in_one_line(tmp_path, kind):
  files = {s: {f'{s}{i}.wav': [str(i % 2)] for i in range(4)}
           for s in ('train', 'valid', 'test')}
  files['test'] = {f't{i}.wav': ['1'] for i in range(4)}
  folder = write(tmp_path / 't', files, ['0', '1'], prediction_type=kind)
  with pytest.raises(ValueError, match=r'test\.json: all 4 clips have the same '
                     r'labels \(1\): expected') as caught:
    tasks.load(folder)
  assert '\n' not in str(caught.value)


def test_groups_are_read_where_the_task_names_them(tmp_path):
  folder = toy(tmp_path)
  assert tasks.load(folder).groups is None
  rows = [f'{s}{i}.wav,kit {i // 2}' for s, n in (('a', 6), ('b', 4), ('c', 4))
          for i in range(n)]
  path = folder / 'provenance.csv'
  path.write_text('file,group\n' + '\n'.join(rows))
  task = tasks.load(folder)
  for name, group in zip(task.files['train'], task.groups['train']):
    assert group == f'kit {int(name[1]) // 2}'
  path.write_text('file,group\n' + '\n'.join(rows[1:]))
  with pytest.raises(ValueError, match=r'provenance.csv: no row for a0.wav'):
    tasks.load(folder)
  # Another table under that name says nothing of groups.
  path.write_text('file,licence\na0.wav,CC0\n')
  assert tasks.load(folder).groups is None


def test_find(tmp_path):
  one = toy(tmp_path / 'tasks')
  assert tasks.find(tmp_path) == [one]
  assert tasks.find(tmp_path / 'tasks') == [one]
  assert tasks.find(one) == [one]
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='no task here'):
    tasks.find(tmp_path / 'empty')
  with pytest.raises(FileNotFoundError, match='nowhere'):
    tasks.find(tmp_path / 'nowhere')


def test_another_lossless_container(tmp_path):
  folder = toy(tmp_path)
  clip = folder / '16000/train/a0.wav'
  wave_S, rate = soundfile.read(clip)
  soundfile.write(clip.with_suffix('.flac'), wave_S, rate)
  clip.unlink()
  clips = dict(tasks.audio(tasks.load(folder), 'train'))
  np.testing.assert_array_equal(clips['a0.wav'], wave_S.astype(np.float32))


@pytest.mark.parametrize('gone, named', [
    ('task_metadata.json', 'task_metadata.json'),
    ('labelvocabulary.csv', 'labelvocabulary.csv'),
    ('valid.json', 'valid.json'),
    ('16000/test/c1.wav', 'c1.wav')])
def test_missing_file(tmp_path, gone, named):
  folder = toy(tmp_path)
  (folder / gone).unlink()
  with pytest.raises(FileNotFoundError, match=named) as caught:
    tasks.load(folder)
  assert '\n' not in str(caught.value)


def test_missing_rate(tmp_path):
  with pytest.raises(FileNotFoundError, match='48000'):
    tasks.load(toy(tmp_path), rate=48000)


@pytest.mark.parametrize('file, content, named', [
    ('train.json', '{"a0.wav": ["9"]}', "'9'"),
    ('train.json', '{"a0.wav": ["0", "1"]}', '2 labels'),
    ('train.json', '{"a0.wav": "0"}', 'expected a list'),
    ('train.json', '{}', 'no clips'),
    ('train.json', '[', 'not JSON'),
    ('train.json', '[]', 'expected an object'),
    ('labelvocabulary.csv', 'a,b\n0,0\n', 'header idx,label'),
    ('labelvocabulary.csv', 'idx,label\n0,0\n2,1\n', 'idx 0 to 1')])
def test_bad_content(tmp_path, file, content, named):
  folder = toy(tmp_path)
  (folder / file).write_text(content)
  with pytest.raises(ValueError, match=named) as caught:
    tasks.load(folder)
  assert file in str(caught.value)


@pytest.mark.parametrize('field, value', [
    ('embedding_type', 'sequence'), ('prediction_type', 'regression'),
    ('split_mode', 'random'), ('splits', ['train', 'test']),
    ('evaluation', [])])
def test_bad_metadata(tmp_path, field, value):
  with pytest.raises(ValueError, match=field) as caught:
    tasks.load(toy(tmp_path, **{field: value}))
  assert 'task_metadata.json' in str(caught.value)


@pytest.mark.parametrize('damage, message', [
    (lambda path: soundfile.write(path, np.zeros((9, 2)), 16000),
     'a3.wav: 16000 Hz, 2 channels'),
    (lambda path: soundfile.write(path, np.zeros(9), 8000),
     'a3.wav: 8000 Hz, 1 channels'),
    (lambda path: path.write_bytes(b'RIFF'), 'a3.wav: undecodable'),
    # The header of a whole file, and half of its samples.
    (lambda path: path.write_bytes(path.read_bytes()[:200]),
     'a3.wav: cut off'),
    # Floats in the unit of int16.
    (lambda path: soundfile.write(path, np.full(160, 9e3), 16000, 'FLOAT'),
     'a3.wav: wrong magnitude'),
    (lambda path: soundfile.write(path, np.full(160, np.nan), 16000, 'FLOAT'),
     'a3.wav: non-finite')])
def test_a_clip_that_prepare_would_refuse_is_refused(tmp_path, damage, message):
  folder = toy(tmp_path)
  damage(folder / '16000/train/a3.wav')
  with pytest.raises(ValueError, match=message) as caught:
    list(tasks.audio(tasks.load(folder), 'train'))
  assert '\n' not in str(caught.value)


def test_clips_of_another_length_than_the_task_says_are_named(tmp_path):
  folder = toy(tmp_path)
  task = tasks.load(folder)  # Of .01 s, 160 samples.
  lengths = [160, 170, 140, 160, 500, 160]
  assert tasks.other_lengths(task, 'train', lengths) == [
      task.files['train'][2], task.files['train'][4]]
  assert not tasks.other_lengths(task._replace(sample_duration=None), 'train',
                                 lengths)


def test_names_with_folders_of_their_own(tmp_path):
  names = lambda s: {f'{label}/{s}{i}.wav': [label]
                     for label in ('hi', 'lo') for i in range(2)}
  for split in ('train', 'valid', 'test'):
    for label in ('hi', 'lo'):
      (tmp_path / 't/16000' / split / label).mkdir(parents=True)
  folder = write(tmp_path / 't', {s: names(s) for s in (
      'train', 'valid', 'test')}, ['hi', 'lo'])
  task = tasks.load(folder)
  assert len(dict(tasks.audio(task, 'test'))) == 4
  # They count in what a record names the task by.
  before = staged.fingerprint(folder)
  soundfile.write(folder / '16000/test/hi/test0.wav', np.full(160, .9), 16000)
  assert staged.fingerprint(folder) != before
  (folder / '16000/test/hi/test0.wav').unlink()
  with pytest.raises(FileNotFoundError, match='hi/test0.wav: missing'):
    tasks.load(folder)
  (folder / 'test.json').write_text('{"../x.wav": ["hi"], "/y.wav": ["lo"]}')
  with pytest.raises(ValueError, match=r'test.json: ../x.wav lies outside'):
    tasks.load(folder)
