"""A task that was scored once opens no clip again."""

import os

import numpy as np
import pytest
import soundfile

from audiorank import evaluate
from audiorank.hear import staged
from audiorank.hear import tasks
from tests import evaluate_test


@pytest.fixture
def forget(tmp_path, monkeypatch):
  """The cache, forgotten by the process when it is called."""
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path / 'cache'))
  return staged._memory.clear


@pytest.fixture(params=['scene', 'event'])
def folder(request, tmp_path):
  return evaluate_test.write_task(tmp_path / 'tones-v1-full',
                                  kind=request.param)


def waves(task):
  return {name: wave_S for split in task.splits
          for name, wave_S in staged.audio(task, split)}


def same(a, b):
  """Asserts that two tasks ask the same."""
  for name in tasks.Task._fields:
    if name != 'targets':
      assert getattr(a, name) == getattr(b, name)
  for split in a.splits:
    np.testing.assert_array_equal(a.targets[split], b.targets[split])


def test_a_second_scoring_opens_three_files(forget, folder, monkeypatch):
  first = staged.load(folder, 16_000), staged.fingerprint(folder)
  clips = waves(first[0])
  forget()

  def refused(path, *_, **__):
    raise AssertionError(f'{path} is opened')

  monkeypatch.setattr(soundfile, 'SoundFile', refused)
  opened, opener = [], open

  def counted(path, *arguments, **named):
    opened.append(str(path))
    return opener(path, *arguments, **named)

  monkeypatch.setattr('builtins.open', counted)
  monkeypatch.setattr('io.open', counted)
  second = staged.load(folder, 16_000), staged.fingerprint(folder)
  again = waves(second[0])
  monkeypatch.undo()
  assert 0 < len(set(opened)) <= 3
  same(first[0], second[0])
  same(first[0], tasks.load(folder))
  assert first[1] == second[1]
  for name, wave_S in clips.items():
    assert wave_S.dtype == again[name].dtype == np.float32
    np.testing.assert_array_equal(wave_S, again[name])


def test_samples_are_those_of_the_files(forget, folder):
  task = staged.load(folder, 16_000)
  for split in task.splits:
    for (name, ours_S), (same_name, theirs_S) in zip(
        staged.audio(task, split), tasks.audio(task, split), strict=True):
      assert name == same_name
      np.testing.assert_array_equal(ours_S, theirs_S)


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'FLOAT'])
def test_every_bit_is_kept(forget, folder, subtype):
  task = tasks.load(folder)
  path = task.paths['test'][0]
  wave_S = np.float32(.3) * np.sin(np.arange(8000, dtype=np.float32) / 7)
  soundfile.write(path, wave_S, 16_000, subtype=subtype)
  (name, ours_S), *_ = staged.audio(task, 'test')
  theirs_S, _ = soundfile.read(path, dtype='float32')
  np.testing.assert_array_equal(ours_S, theirs_S)


def test_what_changed_is_read_again(forget, folder):
  before = staged.fingerprint(folder), staged.listing(folder)
  waves(staged.load(folder, 16_000))
  path = tasks.load(folder).paths['train'][1]
  wave_S, rate = soundfile.read(path)
  soundfile.write(path, -wave_S, rate)
  os.utime(path, ns=(1, 1))  # Whatever the clock's grain.
  assert (staged.fingerprint(folder), staged.listing(folder)) != before
  task = staged.load(folder, 16_000)
  np.testing.assert_array_equal(
      dict(staged.audio(task, 'train'))[path.name],
      soundfile.read(path, dtype='float32')[0])


def test_damage_is_seen_and_a_full_disk_costs_the_cache_alone(
    forget, folder, tmp_path, monkeypatch):
  task = staged.load(folder, 16_000)
  clips = waves(task)
  (path,) = (tmp_path / 'cache/tasks').glob('*.pcm')
  content = bytearray(path.read_bytes())
  content[100] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match='damaged, and deleted'):
    waves(task)
  monkeypatch.setattr(staged, 'MOST_OF_DISK', 0.)
  again = waves(task)
  assert all(np.array_equal(again[n], w) for n, w in clips.items())
  assert not list((tmp_path / 'cache/tasks').glob('*.pcm'))


def test_bad_tasks_are_refused_as_ever(forget, tmp_path):
  with pytest.raises(FileNotFoundError, match='no such task folder'):
    staged.load(tmp_path / 'none', 16_000)
  folder = evaluate_test.write_task(tmp_path / 'tones-v1-full')
  (folder / '16000/train/0.wav').write_bytes(b'noise')
  with pytest.raises(ValueError, match='undecodable'):
    waves(staged.load(folder, 16_000))
  assert not list((tmp_path / 'cache/tasks').glob('*.pcm'))
  assert evaluate.clip_rate(folder, 16_000) == 16_000
