"""Which checkpoint is kept, which is taken, what fsck says: no training."""

import pathlib
import types

import jax
import numpy as np
import optax
import pytest

from audiorank import checkpoint
from configs import base


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
   'seal truncated': lambda: seal.write_text('{'),
   'seal of a list': lambda: seal.write_text('[]')}[how]()


@pytest.mark.parametrize('how', [
    'flipped', 'deleted', 'truncated', 'added', 'unsealed', 'seal flipped',
    'seal truncated', 'seal of a list'])
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


def test_old_steps_go_but_those_to_keep_stay(tmp_path):
  folder = tmp_path / 'checkpoints'
  folder.mkdir()
  config = base.get_config('en32-2')
  with checkpoint.open_manager(folder, every=2, keep=6) as m:
    for step in range(21):
      part = {'w': jax.device_put(np.full(3, step, np.float32))}
      adam = optax.ScaleByAdamState(np.int32(step), part, part)
      saved = checkpoint.save(m, types.SimpleNamespace(
          step=step, params=part, batch_stats={}, opt_state=(adam,)), config)
      assert saved == (step % 2 == 0)
    checkpoint.wait(m)
    checkpoint.seal(folder)
  assert checkpoint.steps(folder) == [0, 6, 12, 18, 20]
  assert checkpoint.fsck(folder) == [(s, '') for s in (0, 6, 12, 18, 20)]
  sealed = {p.name.split('.')[0] for p in folder.glob('*.sha256.json')}
  assert sealed == {'0', '6', '12', '18', '20'}


@pytest.mark.parametrize('error, why', [
    (ValueError('RESOURCE_EXHAUSTED: Error writing "a/0" in "/x": Failed to '
                "write 9 bytes: No space left on device [os_error_code='28']"),
     'No space left on device'),
    (OSError(13, 'Permission denied'), 'Permission denied')],
                         ids=['full', 'forbidden'])
def test_a_save_that_fails_names_its_folder_and_why(error, why):
  def fails():
    raise error
  odd = types.SimpleNamespace(directory='runs/7/checkpoints',
                              wait_until_finished=fails)
  with pytest.raises(OSError, match=f'^runs/7/checkpoints: .*saved: .*{why}$'):
    checkpoint.wait(odd)
