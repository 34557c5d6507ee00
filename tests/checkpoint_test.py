"""Which checkpoint is taken, and what fsck says, without any training."""

import pathlib

import pytest

from audiorank import checkpoint


@pytest.fixture
def folder(tmp_path):
  """Three sealed steps of two files each."""
  for step in (0, 10, 20):
    part = tmp_path / 'checkpoints' / str(step) / 'params'
    part.mkdir(parents=True)
    (part / 'data').write_bytes(bytes(range(256)) * 8)
    (part / 'index').write_text(f'step {step}')
  checkpoint.seal(tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints'


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def damage(folder, how):
  file = folder / '20' / 'params' / 'data'
  seal = folder / '20.sha256.json'
  {'flipped': lambda: flip(file), 'deleted': file.unlink,
   'truncated': lambda: file.write_bytes(file.read_bytes()[:100]),
   'added': lambda: (file.parent / 'more').write_text('x'),
   'unsealed': seal.unlink, 'seal flipped': lambda: flip(seal),
   'seal truncated': lambda: seal.write_text('{')}[how]()


@pytest.mark.parametrize('how', [
    'flipped', 'deleted', 'truncated', 'added', 'unsealed', 'seal flipped',
    'seal truncated'])
def test_a_step_that_is_not_what_was_written_is_put_aside(folder, how):
  assert checkpoint.newest(folder) == 20
  damage(folder, how)
  assert [bool(wrong) for _, wrong in checkpoint.fsck(folder.parent)] == [
      False, False, True]
  assert checkpoint.newest(folder) == 10
  assert checkpoint.steps(folder) == [0, 10]
  assert (folder.parent / 'damaged' / '20').is_dir()
  assert not (folder / '20.sha256.json').exists()


def test_every_file_of_a_step_is_watched(folder):
  for file in sorted((folder / '10').rglob('*')):
    if file.is_file():
      whole = file.read_bytes()
      flip(file)
      assert file.name in checkpoint.verify(folder, 10)
      file.write_bytes(whole)
  assert checkpoint.verify(folder, 10) == ''


def test_nothing_whole_is_nothing(folder):
  for step in (0, 10, 20):
    flip(folder / str(step) / 'params' / 'index')
  assert checkpoint.newest(folder) is None


def test_fsck_says_what_and_exits_so(folder, capsys):
  assert checkpoint.main(['', 'fsck', str(folder.parent)]) == 0
  assert capsys.readouterr().out.count('whole') == 3
  flip(folder / '10' / 'params' / 'data')
  assert checkpoint.main(['', 'fsck', str(folder.parent)]) == 1
  assert 'step 10: params/data is not what was written' in (
      capsys.readouterr().out)
  nowhere = pathlib.Path('no', 'such')
  assert checkpoint.main(['', 'fsck', str(nowhere)]) == 1
  assert 'no checkpoint' in capsys.readouterr().err
