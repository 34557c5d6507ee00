"""Which checkpoint is kept, which is taken, what fsck says: no training."""

import pathlib
import types

import jax
import numpy as np
import optax
import pytest

from audiorank import checkpoint
from audiorank import encoders
from configs import base


@pytest.fixture
def folder(tmp_path):
  """Three sealed steps of two files each."""
  for step in (0, 10, 20):
    part = tmp_path / 'checkpoints' / str(step) / 'params'
    part.mkdir(parents=True)
    (part / 'data').write_bytes(bytes(range(256)) * 8)
    (part / 'index').write_text(f'step {step}')
    (part.parent / 'config').mkdir()
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
   'unsealed': seal.unlink, 'seal flipped': lambda: flip(seal),
   'seal truncated': lambda: seal.write_text('{'),
   'seal of a list': lambda: seal.write_text('[]')}[how]()


@pytest.mark.parametrize('how', [
    'flipped', 'deleted', 'truncated', 'unsealed', 'seal flipped',
    'seal truncated', 'seal of a list'])
@pytest.mark.filterwarnings('ignore::audiorank.checkpoint.NotVerified')
def test_a_step_that_is_not_what_was_written_is_put_aside(folder, how):
  assert checkpoint.newest(folder) == 20
  damage(folder, how)
  assert [bool(wrong) for _, wrong in checkpoint.fsck(folder.parent)] == [
      False, False, True]
  assert checkpoint.newest(folder) == 10
  assert checkpoint.steps(folder) == [0, 10]
  assert (folder.parent / 'damaged' / '20').is_dir()
  assert not (folder / '20.sha256.json').exists()


@pytest.mark.parametrize('place', ['20/.DS_Store', '20/params/._data',
                                   '20/params/.nfs0000001', '20/new/more',
                                   '.DS_Store', '._20.sha256.json'])
def test_files_of_others_do_not_condemn_a_checkpoint(folder, place):
  (folder / place).parent.mkdir(exist_ok=True)
  (folder / place).write_bytes(b'x')
  assert checkpoint.fsck(folder.parent) == [(0, ''), (10, ''), (20, '')]
  assert checkpoint.newest(folder) == 20
  checkpoint.seal(folder)
  assert (folder / place).exists()
  assert not (folder.parent / 'damaged').exists()


@pytest.fixture
def saved(tmp_path):
  """A run's folder with two steps as orbax writes them."""
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').touch()  # As in every run's folder.
  config = base.get_config('en32-2')
  with checkpoint.open_manager(tmp_path / 'checkpoints', 1, 1) as manager:
    for step in (1, 2):
      part = {'w': jax.device_put(np.full(3, step, np.float32))}
      adam = optax.ScaleByAdamState(np.int32(step), part, part)
      checkpoint.save(manager, types.SimpleNamespace(
          step=step, params=part, batch_stats={}, opt_state=(adam,)), config)
    checkpoint.wait(manager)
  return tmp_path


def test_absent_checksums_are_warned_of_and_cost_nothing(saved):
  """A killed writer leaves such a step, and so does a copy without them."""
  folder = saved / 'checkpoints'
  assert checkpoint.unsealed(folder) == [1, 2]
  with pytest.warns(checkpoint.NotVerified, match='no 2.sha256.json'):
    assert checkpoint.newest(folder) == 2
  with pytest.warns(checkpoint.NotVerified, match='no 2.sha256.json'):
    _, params = checkpoint.load(saved)
  np.testing.assert_array_equal(params['params']['w'], 2)
  with pytest.warns(checkpoint.NotVerified):
    assert encoders.weights(saved)[2]['verified'] is False
  assert not (saved / 'damaged').exists()
  checkpoint.seal(folder)
  assert encoders.weights(saved)[2]['verified'] is True


def test_a_model_is_named_by_the_step_that_was_read(saved):
  """Not by the newest, if that is damaged."""
  checkpoint.seal(saved / 'checkpoints')
  flip(max((saved / 'checkpoints' / '2').rglob('*'),
           key=lambda path: path.is_file() and path.stat().st_size))
  assert encoders.weights(saved)[2]['step'] == 1


@pytest.mark.filterwarnings('ignore::audiorank.checkpoint.NotVerified')
def test_without_checksums_what_cannot_be_read_is_put_aside(saved):
  (saved / 'checkpoints' / '2' / 'params' / '_METADATA').write_text('{')
  assert checkpoint.newest(saved / 'checkpoints') == 1
  assert (saved / 'damaged' / '2').is_dir()


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
  (tmp_path / 'config.json').touch()
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
def test_a_save_that_fails_names_its_folder_and_why(tmp_path, error, why):
  def fails():
    raise error
  (tmp_path / 'config.json').touch()
  folder = tmp_path / 'checkpoints'
  odd = types.SimpleNamespace(directory=folder, wait_until_finished=fails)
  with pytest.raises(OSError, match=f'^{folder}: .*saved: .*{why}$'):
    checkpoint.wait(odd)
