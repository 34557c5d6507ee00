"""Odd input that once passed or failed in somebody else's words."""

import shutil
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest

import audiorank
from audiorank import dasheng
from audiorank import encoders
from audiorank import evaluate
from audiorank import rankme
from audiorank import records
from audiorank import train_state
from audiorank.rankme import files
from audiorank.rankme import record
from configs import base


@pytest.fixture
def z_ND():
  return np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32)


@pytest.mark.parametrize('method', ['gram', 'svd', 'tsqr', 'sliced'])
def test_one_vector_has_no_centred_rank_by_any_road(z_ND, method):
  one_ND = np.repeat(z_ND[:1], 512, 0)
  with pytest.raises(ValueError, match='all one vector'):
    rankme.rankme(one_ND, method=method, center=True)
  assert rankme.rankme(z_ND, method=method, center=True) > 20


def test_one_vector_has_no_centred_rank_inside_jit(z_ND):
  rank = jax.jit(lambda z: rankme.rankme(z, center=True))
  assert np.isnan(rank(np.repeat(z_ND[:1], 512, 0)))
  assert float(rank(z_ND)) == pytest.approx(
      rankme.rankme(z_ND, center=True), rel=1e-5)


@pytest.mark.parametrize('groups', [None, np.arange(400) // 4])
def test_a_bad_batch_leaves_a_state_as_it_was(z_ND, groups):
  state = rankme.update(rankme.init(24), z_ND, groups)
  before = [a.copy() for a in state]
  z_ND[7, 3] = np.nan
  with pytest.raises(ValueError, match='the first in row 7'):
    rankme.update(state, z_ND, groups)
  for bad in (np.ones((3, 24), np.int32), z_ND[:, :5], [[1, 2]]):
    with pytest.raises(ValueError):
      rankme.update(state, bad)
  for a, b in zip(before, state):
    np.testing.assert_array_equal(a, b)
  with pytest.warns(rankme.LowPrecision):
    rankme.update(state, np.zeros((2, 24), np.float16))


def test_files_that_are_no_state(tmp_path, z_ND):
  for name, write in (('z.npy', lambda p: np.save(p, z_ND)),
                      ('t.npz', lambda p: p.write_text('text')),
                      ('cut.npz', lambda p: p.write_bytes(b'PK\x03\x04ab'))):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=name):
      rankme.restore(tmp_path / name)


def test_missing_groups_and_one_recording(z_ND):
  with pytest.raises(ValueError, match='one id a clip'):
    rankme.estimate(z_ND, groups=[None, *'a' * 399])
  fields = record.rank_fields(z_ND, np.zeros(400))
  assert fields['sources'] == 1 and fields['rank']['low'] > 0


def test_squares_that_overflow_are_said_to(tmp_path, z_ND):
  np.save(tmp_path / 'z.npy', z_ND.astype(np.float64) * 1e200)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    with pytest.raises(ValueError, match='rescale'):
      files.file_rank(tmp_path / 'z.npy')


def test_records_of_two_arrays_of_one_file_have_two_names(tmp_path):
  names = {evaluate.write(tmp_path, 'z', {
      'embeddings': {'file': 'z.npz', 'array': array}, 'rank': {'n': 1}})
           for array in 'ab'}
  assert len(names) == 2


def test_a_package_counts_with_all_its_files(tmp_path, monkeypatch):
  import importlib
  package = tmp_path / 'odd_package'
  package.mkdir()
  (package / '__init__.py').write_text('')
  (package / 'helper.py').write_text('x = 1\n')
  monkeypatch.syspath_prepend(tmp_path)
  api = importlib.import_module('odd_package')
  before = encoders.source(api)
  (package / 'helper.py').write_text('x = 2\n')
  assert encoders.source(api) != before


def test_a_module_with_a_mistake_is_one_line(tmp_path, monkeypatch):
  (tmp_path / 'odd_module.py').write_text('def (:\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match='odd_module: SyntaxError'):
    encoders.module('odd_module')


@pytest.fixture
def state():
  c = base.get_config('en32-2')
  c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype),
                       train_state.state_shapes(c))
  return c, {'params': zeros.params, 'batch_stats': zeros.batch_stats}


def test_a_dictionary_is_checked_both_ways(state):
  config, params = state
  good = dasheng.to_state_dict(config, params)
  heads = {'num_heads': 1}
  with pytest.raises(ValueError, match=r'blocks\.7\.attn\.qkv\.bias'):
    dasheng.from_state_dict(
        {**good, 'encoder.blocks.7.attn.qkv.bias': np.zeros(96)}, heads)
  params['params']['encoder']['junk'] = np.zeros(3)
  with pytest.raises(ValueError, match='junk'):
    dasheng.to_state_dict(config, params)
  with pytest.raises(ValueError, match='list'):
    dasheng.from_state_dict([1, 2])
  with pytest.raises(ValueError, match='whole number'):
    dasheng.from_state_dict(good, {'num_heads': '4'})
  with pytest.raises(ValueError, match='width'):
    dasheng.from_state_dict(good, {'encoder_kwargs': {'embed_dim': 999}})
  half = {k: v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v
          for k, v in good.items()}
  found, _ = dasheng.from_state_dict(half, heads)
  assert found.model.heads == 1


WAVE_S = np.sin(np.arange(16000, dtype=np.float32) / 9) * .1


@pytest.fixture(scope='module')
def sample_model():
  return audiorank.load(records.SAMPLE / 'model')


@pytest.mark.parametrize('sounds, message', [
    (np.stack([WAVE_S, WAVE_S], 1), r'shape \(16000, 2\)'),
    (np.repeat(WAVE_S[:, None], 40, 1), r'shape \(16000, 40\)'),
    ([np.stack([WAVE_S, WAVE_S], 1)], r'clip 0: shape \(16000, 2\)'),
    (WAVE_S[None, None], r'shape \(1, 1, 16000\)'),
    # 100 channels of 200 samples, or clips of less than a patch.
    (np.repeat(WAVE_S[:200, None], 100, 1), 'clip 0: 100 samples at 16 kHz'),
    (WAVE_S[:639], 'clip 0: 639 samples at 16 kHz, expected at least 640'),
    ([WAVE_S, WAVE_S[:0]], 'clip 1: shape'),
    (WAVE_S * 32768, r'clip 0: a peak of 3.28e\+03'),
    (np.abs(WAVE_S) * 2000, 'clip 0: a peak of 200'),
    ((WAVE_S * 2 ** 31).astype(np.int32), 'clip 0: int32'),
    ((WAVE_S * 100 + 128).astype(np.uint8), 'clip 0: uint8'),
    (WAVE_S.astype(object), 'clip 0: object'),
    (WAVE_S.astype(np.complex64), 'clip 0: complex64'),
    (np.ma.array(WAVE_S, mask=WAVE_S > 0), 'clip 0: masked samples'),
    (np.where(WAVE_S > .09, np.nan, WAVE_S), 'clip 0: NaN or infinity'),
    (None, 'NoneType: expected a file'), (5., 'float: expected a file'),
    ([WAVE_S, None], 'clip 1'), ([], 'no clips')])
def test_what_is_no_mono_wave_is_refused(sample_model, sounds, message):
  with pytest.raises(ValueError, match=message) as caught:
    sample_model.embed(sounds)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('rate', [0, -5, 3, np.nan, np.inf, 1e12, 'high', None])
def test_a_rate_that_cannot_be_is_refused_at_once(sample_model, rate):
  for call in (sample_model.embed, sample_model.timestamps):
    with pytest.raises(ValueError, match='^rate '):
      call(WAVE_S, rate=rate)


@pytest.fixture(scope='module')
def released(sample_model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('released') / 'model'
  sample_model.save_pretrained(folder)
  return folder


@pytest.mark.parametrize('text, line', [
    ('[]', 'a list, expected fields'), ('null', 'a NoneType, expected fields'),
    ('[' * 10 ** 5, 'nested too deeply'),
    ('{"audiorank": null}', 'audiorank.model is missing'),
    ('{"audiorank": {"model": []}}', 'audiorank.model is missing'),
    ('{"audiorank": {"model": [1]}}', r'audiorank.model: \[1\], expected'),
    ('{"audiorank": {"model": {"width": 1}, "opt": []}}', 'audiorank.opt: '),
    ('{"audiorank": {"model": {"width": -32}}}', 'config.width: -32, expected'),
    ('{"audiorank": {"model": {"heads": null}}}', 'config.heads: None'),
    ('{"audiorank": {"model": {"unroll": -1}}}', 'config.unroll: -1'),
    ('{"audiorank": {"model": {"dtype": []}}}', r'config.dtype: \[\], exp'),
    ('{"audiorank": {"model": {"decoder": null}}}', 'config.decoder: None'),
    ('{"audiorank": {"model": {"decoder": {"depth": 0}}}}', 'decoder.depth: 0'),
    ('{"audiorank": {"model": {"width": 999}}}', 'config.width: 999, but'),
    ('{"encoder_kwargs": null}', 'encoder_kwargs: None, expected fields'),
    ('{"encoder_kwargs": {"embed_dim": Infinity}}', 'width inf, expected'),
    ('{"encoder_kwargs": {"depth": -2}}', 'config.depth: -2, but'),
    ('{"model_args": []}', 'config.model_args: a list')])
def test_a_released_config_of_another_shape_is_one_line(
    released, tmp_path, text, line):
  folder = shutil.copytree(released, tmp_path / 'model')
  (folder / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=line) as caught:
    audiorank.load(folder)
  assert str(folder / 'config.json') in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['[]', 'null', '{"n_mels": [64]}'])
def test_a_released_front_end_of_another_shape_is_one_line(
    released, tmp_path, text):
  folder = shutil.copytree(released, tmp_path / 'model')
  (folder / 'preprocessor_config.json').write_text(text)
  with pytest.raises(ValueError, match='preprocessor_config.json: '):
    audiorank.load(folder)
