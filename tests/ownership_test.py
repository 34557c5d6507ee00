"""A folder is ours because of our mark in it, never because of its name."""

import json
import shutil

import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import embedding_cache
from audiorank import prepare
from audiorank import records
from tests import fuzz_test
from tests import tiny


@pytest.mark.parametrize('name', ['checkpoints/100/model.bin',
                                  'records/mine.json', 'metrics.jsonl',
                                  'damaged/1/x', 'DONE'])
def test_a_run_does_not_begin_among_files_of_others(tmp_path, name):
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_text('precious')
  with pytest.raises(ValueError, match='but no config.json'):
    records.open_run(tmp_path, tiny.config('corpus'))
  assert fuzz_test.in_folder(tmp_path) == [name]
  # Notes, logs and the like are no run's.
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'notes.txt').write_text('precious')
  records.open_run(other, tiny.config('corpus'))
  assert (other / 'notes.txt').read_text() == 'precious'


def test_what_was_put_aside_before_stays(tmp_path):
  folder = tmp_path / 'checkpoints'
  for i in range(3):
    (folder / '20').mkdir(parents=True)
    (folder / '20' / 'data').write_text(f'{i}')
    checkpoint.put_aside(folder, 20, 'damaged')
  assert {p.name: (p / 'data').read_text()
          for p in (tmp_path / 'damaged').iterdir()} == {
              '20': '0', '20.1': '1', '20.2': '2'}


def test_a_cleared_cache_leaves_what_is_not_its_own(tmp_path):
  root = tmp_path / 'cache'
  embedding_cache.fetch(str(root), 'encoder', 'task', lambda: {'a': 1},
                        lambda: {'z': np.ones(2)})
  (own, _), = embedding_cache.listing(root)
  about = (root / own).with_suffix('.json').read_text()
  kept = {'encoder/notes.txt': 'x', 'encoder/task-0123456789ab.npz': 'x',
          # The name and the description of ours, with one field changed.
          'other/copy.npz': 'x', 'other/copy.json': about,
          'other/deep-0123456789ab.npz': 'x',
          'other/deep-0123456789ab.json': '[' * 100_000,
          'other/nan-0123456789ab.npz': 'x',
          'other/nan-0123456789ab.json': '{"a": NaN}'}
  for name, text in kept.items():
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)
  (tmp_path / 'linked').mkdir()
  (tmp_path / 'linked' / 'z.npz').write_text('x')
  (root / 'link').symlink_to(tmp_path / 'linked')
  assert embedding_cache.clear(root) == 1
  assert fuzz_test.in_folder(root) == sorted([*kept, 'link'])
  assert (tmp_path / 'linked' / 'z.npz').exists()


@pytest.mark.parametrize('files', [
    {'plan.json': '{}'}, {'plan.json': '[' * 100_000}, {'.lock': 'mine'},
    {'shards/shard-00000.array_record': 'mine'}, {'unpacked/a.wav': 'mine'},
    {'manifest.csv': 'mine'}, {'corpus.json': json.dumps({'format': 2})}],
                         ids=lambda files: next(iter(files)))
def test_prepare_writes_into_no_folder_of_others(tmp_path, files):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.wav').write_bytes(b'RIFF')
  for name, text in files.items():
    (tmp_path / 'out' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'out' / name).write_text(text)
  with pytest.raises(ValueError, match='not begun by prepare'):
    prepare.run(tmp_path / 'in', tmp_path / 'out', workers=1)
  for name, text in files.items():
    assert (tmp_path / 'out' / name).read_text() == text


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run's folder with checkpoints of the steps 1 and 2."""
  folder = tmp_path_factory.mktemp('run')
  fuzz_test.checkpoints(folder)
  return folder


# 0 is what orbax would delete first, 2026 what it would restore.
@pytest.mark.parametrize('name', ['0', '01', '2026', '\u00b2', '9' * 40])
@pytest.mark.parametrize('inside', ['notes.txt', 'params/weights.bin'])
def test_a_numbered_folder_of_others_among_checkpoints(
    run, tmp_path, name, inside, caplog):
  folder = shutil.copytree(run, tmp_path / 'run') / 'checkpoints'
  (folder / name / inside).parent.mkdir(parents=True)
  (folder / name / inside).write_text('precious')
  before = fuzz_test.in_folder(folder.parent)
  assert checkpoint.steps(folder) == [1, 2] and checkpoint.newest(folder) == 2
  for read in (lambda: checkpoint.load(folder.parent)[1]['params']['w'][0] == 2,
               lambda: checkpoint.fsck(folder) == [(1, ''), (2, '')]):
    caplog.clear()
    assert read()
    assert caplog.messages == [f'{folder / name}: not a checkpoint of ours, so '
                               'it is passed over']
  checkpoint.seal(folder)
  with pytest.raises(ValueError, match=f'^{folder / name}: not a checkpoint of '
                     'ours, but named like one: expected it elsewhere$'):
    with checkpoint.open_manager(folder, 1, 1):
      pass
  assert fuzz_test.in_folder(folder.parent) == before
  assert (folder / name / inside).read_text() == 'precious'


def test_a_damaged_checkpoint_of_ours_is_still_ours(run, tmp_path):
  folder = shutil.copytree(run, tmp_path / 'run') / 'checkpoints'
  shutil.rmtree(folder / '2' / 'params')
  assert checkpoint.foreign(folder) == []
  assert checkpoint.newest(folder) == 1
  assert (folder.parent / 'damaged' / '2').is_dir()
