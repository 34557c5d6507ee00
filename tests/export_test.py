"""Models on their way out come back as they were, and say what they are."""

import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest

import audiorank
from audiorank import dasheng
from audiorank import embed
from audiorank import records
from audiorank import train_state
from audiorank.export import card
from audiorank.export import onnx
from audiorank.export import pretrained
from audiorank.export import pytorch
from audiorank.export import stablehlo
from configs import base

pytest.importorskip('safetensors')


@pytest.fixture(scope='module')
def model():
  c = base.get_config('en32-2')
  c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
  c.model.target_frames = 104
  c.data.update({'crop_seconds': .5, 'root': '/home/someone/corpus'})
  made = jax.device_get(jax.jit(lambda key: train_state.init(c, key))(
      jax.random.key(0)))
  params = {'params': made.params, 'batch_stats': made.batch_stats}
  return audiorank.Model(records.frozen(c), params, {})


@pytest.fixture(scope='module')
def wave_NS():
  return .1 * np.random.default_rng(0).standard_normal(
      (3, 8000)).astype(np.float32)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('decoder', [False, True])
def test_a_saved_model_comes_back(model, tmp_path, wave_NS, decoder):
  model.save_pretrained(tmp_path / 'm', decoder=decoder)
  assert {p.name for p in (tmp_path / 'm').iterdir()} == {*pretrained.FILES}
  got = audiorank.load(tmp_path / 'm')
  want = model.params if decoder else {
      kind: {'encoder': tree['encoder']} for kind, tree in
      model.params.items()}
  equal(got.params, want)
  assert got.config.model == model.config.model
  assert got.config.mask == model.config.mask
  np.testing.assert_array_equal(got.embed(wave_NS), model.embed(wave_NS))
  # Again, over itself, and from what came back.
  got.save_pretrained(tmp_path / 'm', decoder=decoder)
  equal(audiorank.load(tmp_path / 'm').params, want)
  assert '/home' not in ''.join(
      (tmp_path / 'm' / name).read_text() for name in pretrained.FILES
      if not name.endswith('.safetensors'))


def test_the_official_code_is_served(model, tmp_path):
  """Names, shapes and arguments are those of the official classes."""
  model.save_pretrained(tmp_path / 'm')
  said = json.loads((tmp_path / 'm' / 'config.json').read_text())
  kwargs = said['encoder_kwargs']
  assert kwargs['embed_dim'] == 32 and kwargs['num_heads'] == 1
  assert kwargs['target_length'] == 104 and kwargs['patch_size'] == [64, 4]
  del said['audiorank']  # As the hub's own Dasheng has it.
  (tmp_path / 'm' / 'config.json').write_text(json.dumps(said))
  got = audiorank.load(tmp_path / 'm')
  equal(got.params, {k: {'encoder': v['encoder']}
                     for k, v in model.params.items()})
  config, params = dasheng.load(tmp_path / 'm' / 'model.safetensors',
                                {'num_heads': 1})
  equal(params, got.params)
  assert config.model.width == 32


def test_others_may_read_the_weights(model, tmp_path):
  before = os.umask(0o022)
  try:
    model.save_pretrained(tmp_path / 'm')
  finally:
    os.umask(before)
  for path in (tmp_path / 'm').iterdir():
    assert path.stat().st_mode & 0o777 == 0o644, path.name
  card_text = (tmp_path / 'm' / 'README.md').read_text()
  assert '1 head,' in card_text and '1 heads' not in card_text


@pytest.mark.parametrize('text, holds', [
    ('released', True), ('released-1.0', True), ('one.pt', True),
    ('one.bin', False), ('one.bin/', True), ('one.safetensors', False)])
def test_a_file_of_another_kind_is_no_folder(text, holds, tmp_path,
                                             monkeypatch):
  monkeypatch.chdir(tmp_path)
  if holds:
    assert pretrained.destination(text).name == text.rstrip('/')
    return
  with pytest.raises(ValueError, match=r'expected a file .pt, .stablehlo'):
    pretrained.destination(text)


def test_what_is_no_model_is_named(model, tmp_path):
  model.save_pretrained(tmp_path / 'm')
  other = shutil.copytree(tmp_path / 'm', tmp_path / 'other')
  front = other / 'preprocessor_config.json'
  front.write_text(front.read_text().replace('16000', '32000'))
  with pytest.raises(ValueError, match='sampling_rate 32000, expected 16000'):
    audiorank.load(other)
  front.unlink()
  (other / 'config.json').write_text('{"audiorank": {}}')
  with pytest.raises(ValueError, match='audiorank.model is missing'):
    audiorank.load(other)
  (other / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match='config.json'):
    audiorank.load(other)
  cut = (tmp_path / 'm' / 'model.safetensors')
  cut.write_bytes(cut.read_bytes()[:-100])
  with pytest.raises(ValueError, match='model.safetensors'):
    audiorank.load(tmp_path / 'm')


def test_other_folders_are_left_alone(model, tmp_path):
  (tmp_path / 'thesis.tex').write_text('text')
  with pytest.raises(ValueError, match='contains thesis.tex'):
    model.save_pretrained(tmp_path)
  with pytest.raises(ValueError, match='a file, expected'):
    model.save_pretrained(tmp_path / 'thesis.tex')
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def run_on_disk(root, model):
  """Writes the records of a made-up sweep; returns its first run's folder."""
  ranks = np.geomspace(6, 28, 9)
  names = []
  for i, rank in enumerate([*ranks, 20.]):
    steps = 2000 if i < 9 else 0
    tree = records.plain(model.config)
    tree['train']['steps'] = steps
    tree['data']['hours'] = 1 + i
    tree['eval']['protocol'] = 'logistic'
    workdir = root / f'run{i}'
    names.append(workdir.name)
    records.write_json(workdir / 'config.json', tree)
    records.write(workdir, 'run', 0, {
        'parameters': {'encoder': 30_000, 'decoder': 9_000},
        'hours': 1. + i, 'corpus': 'c' * 64,
        'flops_per_clip': {'total': 10, 'encoder': 6}})
    for step in {0, steps}:
      e = {'value': rank if step else 25., 'low': rank * .9,
           'high': rank * 1.1, 'value_inf': rank, 'siblings': {}, 'eps': 1e-7}
      records.write(workdir, 'monitor', step, {
          'n': 500, 'sources': 50, 'width': 32, 'layer': 'final', 'rank': e,
          'rank_center': e, 'valid_loss': 1. - .01 * i})
    settings = {k: tree['eval'][k] for k in
                ('protocol', 'grid_points', 'hidden', 'max_epochs', 'seed')}
    records.write(workdir, 'hear.pitch', steps, {
        'task': 'pitch', 'task_sha256': 'p' * 12, 'metric': 'accuracy',
        'settings': settings,
        'embedding_type': 'scene', 'result': {
            'score': .8 - 1.5 / rank if steps else .1,
            'protocol': 'logistic'}})
  records.write_json(root / 'sweep.json', {'title': 'Made up', 'runs': names})
  return root / 'run4'


def test_card_says_what_the_records_say(model, tmp_path, monkeypatch):
  workdir = run_on_disk(tmp_path, model)
  monkeypatch.setattr(card, 'run_of', lambda about: workdir)
  text = card.write(model.config, model.params, {'step': 2000})
  rank = np.geomspace(6, 28, 9)[4]
  assert f'| RankMe, step 2000 | {rank:.2f} | ' in text
  assert '| RankMe, untrained | 25.00 | ' in text
  assert f'| pitch | accuracy | {.8 - 1.5 / rank:.3f} | 0.100 |' in text
  assert '5 h (corpus cccccccccccc)' in text
  # The planted law, from the eight others, predicts the ninth.
  said = text.split('mean score ')[1].split(',')[0]
  assert float(said) == pytest.approx(.8 - 1.5 / rank, abs=2e-3)
  assert '8 other runs' in text
  # An earlier step has no score, and so neither table nor prediction.
  text = card.write(model.config, model.params, {'step': 0})
  assert '## Scores' not in text and 'mean score' not in text


def test_card_without_records(model):
  text = card.write(model.config, model.params, {})
  assert 'come without the records of their training' in text
  assert text.startswith('---\n') and 'nan' not in text


def test_pytorch_is_asked_for_in_one_line(model, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ValueError, match=r"one\.pt: needs torch"):
    pytorch.save(tmp_path / 'one.pt', model.config, model.params)
  assert not list(tmp_path.iterdir())


def test_stablehlo_is_the_encoder(model, tmp_path, wave_NS):
  pytest.importorskip('flatbuffers')
  path = stablehlo.save(tmp_path / 'm.stablehlo', model.config, model.params,
                        .5)
  run = stablehlo.load(path)
  # The bound of float32 sums in another order, at embeddings of order 1.
  want = embed.scene(model.config, model.params, wave_NS)
  for n in (1, 2, 3):
    z_BD, z_BLD = run(wave_NS[:n])
    np.testing.assert_allclose(z_BD, want[:n], atol=1e-5)
    tokens, _ = embed.timestamps(model.config, model.params, wave_NS[:n])
    np.testing.assert_allclose(z_BLD, tokens, atol=1e-5)
  path.write_bytes(path.read_bytes()[:999])
  with pytest.raises(ValueError, match='not an export'):
    stablehlo.load(path)
  with pytest.raises(ValueError, match='layer 7'):
    stablehlo.save(path, model.config, model.params, .5, layer=7)


@pytest.mark.slow
def test_onnx_is_the_encoder(model, tmp_path, wave_NS):
  pytest.importorskip('jax2onnx')
  runtime = pytest.importorskip('onnxruntime')
  path = onnx.save(tmp_path / 'm.onnx', model.config, model.params, .5)
  session = runtime.InferenceSession(path)
  want = embed.scene(model.config, model.params, wave_NS)
  for n in (1, 3):
    z_BD, z_BLD = session.run(None, {
        session.get_inputs()[0].name: wave_NS[:n]})
    np.testing.assert_allclose(z_BD, want[:n], atol=1e-5)
    tokens, _ = embed.timestamps(model.config, model.params, wave_NS[:n])
    np.testing.assert_allclose(z_BLD, tokens, atol=1e-5)


def test_onnx_in_the_open_is_the_encoder(model, tmp_path, wave_NS):
  # Compiled: outside jit two products at once may come out wrong on the CPU
  # with jaxlib 0.7.2.
  z_BD, _ = jax.jit(onnx.encoder(model.config, model.params))(wave_NS)
  # Blocks in the open and two products for the transform: float32's rounding.
  np.testing.assert_allclose(
      z_BD, embed.scene(model.config, model.params, wave_NS), atol=1e-5)
  with pytest.raises(ValueError, match=r'expected \.04 to 1\.04'):
    onnx.save(tmp_path / 'm.onnx', model.config, model.params, 2.)


def test_places_of_a_machine_exist_in_the_config():
  c = base.get_config()
  for part, field in pretrained.PLACES:
    assert isinstance(c[part][field], (str, tuple))


def test_front_end_is_the_one_that_is_computed():
  from audiorank import audio
  assert (pretrained.MEL['n_fft'], pretrained.MEL['hop_size'],
          pretrained.MEL['top_db']) == (audio.N_FFT, audio.HOP, audio.TOP_DB)
