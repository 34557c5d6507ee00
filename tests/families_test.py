"""Encoders of transformers by name: each equals a call by hand."""

import contextlib
import importlib
import importlib.metadata
import json
import pathlib
import shutil
import sys
import types
import warnings

import jax
import numpy as np
import pytest

from audiorank import embed
from audiorank import encoders
from audiorank import families
from audiorank import hub
from audiorank import records
from tests import transformers_models

INSTALLED = False
with contextlib.suppress(ModuleNotFoundError):
  import importlib.util
  INSTALLED = all(importlib.util.find_spec(name)
                  for name in ('torch', 'transformers'))


def real(test):
  """Marks a test that needs torch and transformers: seconds to import."""
  return pytest.mark.slow(pytest.mark.skipif(
      not INSTALLED, reason='torch and transformers are not installed')(test))


@pytest.fixture(scope='module')
def folder_of(tmp_path_factory):
  """Returns a function: name of a tiny model -> its folder, written once."""
  root, known = tmp_path_factory.mktemp('models'), {}

  def get(name):
    if name not in known:
      with warnings.catch_warnings():
        # Of mel filters that are empty by the model's own design.
        warnings.simplefilter('ignore')
        known[name] = transformers_models.write(name, root / name)
    return known[name]

  return get


def by_hand(name, folder, wave_S):
  """The embedding of a clip of every layer, by transformers alone."""
  import torch
  import transformers
  _, _, model, extractor, _ = transformers_models.MODELS[name]
  extractor = getattr(transformers, extractor).from_pretrained(folder)
  model = getattr(transformers, model).from_pretrained(folder).eval()
  if len(wave_S) < .05 * extractor.sampling_rate:
    wave_S = np.pad(wave_S, (0, int(.05 * extractor.sampling_rate)
                             - len(wave_S)))
  inputs = extractor(wave_S, sampling_rate=extractor.sampling_rate,
                     return_tensors='pt')
  if name.startswith('clap'):
    model, inputs['is_longer'] = model.audio_model, torch.tensor([[False]])
  if name == 'whisper':
    model = model.encoder
  with torch.no_grad():
    out = model(**inputs, output_hidden_states=True)
  states = [*out.hidden_states[1:], out.last_hidden_state]
  if name.startswith('clap'):
    return [*(x.mean((2, 3))[0].numpy() for x in states[:-1]),
            out.pooler_output[0].numpy()]
  if name == 'whisper':  # 20 ms a token.
    return [x[0, :-(-len(wave_S) // 320)].mean(0).numpy() for x in states]
  if name == 'ast':
    return [*(x[0, :2].mean(0).numpy() for x in states[:-1]),
            out.pooler_output[0].numpy()]
  own = slice(None)
  if name == 'wav2vec2-bert':  # Half of a token may be padding.
    own = inputs['attention_mask'][0].bool()
  return [x[0, own].mean(0).numpy() for x in states]


@real
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', transformers_models.MODELS)
def test_embeddings_equal_a_call_by_hand(name, folder_of):
  folder = folder_of(name)
  encoder = encoders.by_name(f'hf:{folder}')
  waves = transformers_models.clips(encoder.rate)
  wanted = [by_hand(name, folder, wave_S) for wave_S in waves]
  # All in one call, of several lengths: padding and batch-mates change nothing.
  z_ND = encoder.scene(waves)
  assert z_ND.shape == (len(waves), encoder.about['width'])
  np.testing.assert_allclose(z_ND, np.stack([w[-1] for w in wanted]),
                             atol=1e-5)
  # A louder and longer companion changes nothing either.
  loud = np.ones(2 * encoder.rate, np.float32)
  np.testing.assert_allclose(encoder.scene([waves[1], loud])[0], z_ND[1],
                             atol=1e-5)
  # Every layer, each at its own width, from one pass.
  every = encoders.by_name(f'hf:{folder}', batch=3, layer='all')
  layers = every.scene(waves)
  assert list(layers) == [*range(len(wanted[0]) - 1), 'final']
  assert list(layers) == list(every.layers)
  for k, z_ND in enumerate(layers.values()):
    np.testing.assert_allclose(z_ND, np.stack([w[k] for w in wanted]),
                               atol=1e-5)
  one = encoders.by_name(f'hf:{folder}', layer=0)
  np.testing.assert_allclose(one.scene(waves), layers[0], atol=1e-5)
  assert len({one.key, every.key, encoder.key}) == 3
  # Integers are the same clips, to their rounding.
  short = [np.round(w * 32768).clip(-32768, 32767).astype(np.int16)
           for w in waves]
  np.testing.assert_allclose(
      encoder.scene(short),
      encoder.scene([w.astype(np.float32) / 32768 for w in short]), atol=1e-6)


@real
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['wav2vec2', 'wav2vec2-bert', 'whisper',
                                  'ast', 'clap'])
def test_tokens_have_times_and_long_clips_are_cut(name, folder_of):
  encoder = encoders.by_name(f'hf:{folder_of(name)}')
  waves = transformers_models.clips(encoder.rate, (1.,))
  z_BLD, ms_BL = encoder.timestamps(np.stack([waves[0], waves[0]]))
  step = {'whisper': 20, 'wav2vec2': 20, 'wav2vec2-bert': 20, 'ast': 100,
          'clap': 312.5}[name]
  np.testing.assert_allclose(np.diff(ms_BL[0]), step)
  assert 0 < ms_BL[0, 0] < ms_BL[0, -1] < 1000 + step
  assert z_BLD.shape == (2, ms_BL.shape[1], encoder.about['width'])
  np.testing.assert_allclose(z_BLD[0], z_BLD[1], atol=1e-5)
  if name in ('wav2vec2', 'whisper'):
    np.testing.assert_allclose(z_BLD[0].mean(0), encoder.scene(waves)[0],
                               atol=1e-5)
  # Of every layer, in the same stretch of time.
  every = encoders.by_name(f'hf:{folder_of(name)}', layer='all')
  for z_BLD, times_BL in every.timestamps(waves[0][None]).values():
    assert z_BLD.shape[:2] == times_BL.shape
    assert abs(times_BL[0].mean() - ms_BL[0].mean()) < step / 2
  adapter = families.load(folder_of(name), name)
  if not adapter.window:
    return
  # A clip of one and a half windows is the mean of its parts by length.
  wave_S = transformers_models.clips(
      encoder.rate, (1.5 * adapter.window / encoder.rate,))[0]
  parts = [wave_S[:adapter.window], wave_S[adapter.window:]]
  z_ND = encoder.scene(parts)
  np.testing.assert_allclose(encoder.scene([wave_S])[0],
                             (2 * z_ND[0] + z_ND[1]) / 3, atol=1e-5)
  _, ms_BL = encoder.timestamps(wave_S[None])
  assert (np.diff(ms_BL[0]) > 0).all()
  assert ms_BL[0, -1] < 1000 * len(wave_S) / encoder.rate + step


@real
@pytest.mark.filterwarnings('ignore')
def test_the_record_has_sizes_and_licence(folder_of, tmp_path):
  about = encoders.by_name(f'hf:{folder_of("whisper")}').about
  assert json.loads(json.dumps(about)) == about
  assert about['kind'] == 'transformers' and about['licence'] == 'mit'
  assert about['model_type'] == 'whisper' and about['depth'] == 2
  assert about['revision'] is None and about['rate'] == 16_000
  # Of the encoder alone: 2 blocks, 2 convolutions, positions and a norm.
  blocks = 2 * (4 * 32 * 32 + 3 * 32 + 2 * 32 * 48 + 48 + 32 + 4 * 32)
  assert about['parameters'] == blocks + (
      80 * 32 * 3 + 32 + 32 * 32 * 3 + 32 + 1500 * 32 + 2 * 32)
  # Another extractor is another encoder, another folder is not.
  copy = shutil.copytree(folder_of('wav2vec2'), tmp_path / 'copy')
  before = encoders.by_name(f'hf:{folder_of("wav2vec2")}')
  assert encoders.by_name(f'hf:{copy}').key == before.key
  path = copy / families.FRONT_END
  path.write_text(path.read_text().replace('"do_normalize": true',
                                           '"do_normalize": false'))
  assert encoders.by_name(f'hf:{copy}').key != before.key


@real
@pytest.mark.filterwarnings('ignore')
def test_damaged_and_incomplete_weights_are_one_line(folder_of, tmp_path):
  import safetensors.numpy
  folder = shutil.copytree(folder_of('hubert'), tmp_path / 'one')
  weights = folder / 'model.safetensors'
  arrays = safetensors.numpy.load_file(weights)
  name = next(n for n in arrays if n.endswith('q_proj.weight'))
  del arrays[name]
  safetensors.numpy.save_file(arrays, weights, {'format': 'pt'})
  with pytest.raises(ValueError, match='1 weights are missing, such as encoder'
                     ) as error:
    encoders.by_name(f'hf:{folder}')
  assert '\n' not in str(error.value)
  weights.write_bytes(weights.read_bytes()[:500])
  with pytest.raises(ValueError, match='one: cannot be loaded: ') as error:
    encoders.by_name(f'hf:{folder}')
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match="layer 7: expected 'final' or 0 ... 2"):
    encoders.by_name(f'hf:{folder_of("hubert")}', layer=7)


# --- Without torch ---


def write_small(folder, kind, front_end=True):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps({'model_type': kind}))
  if front_end:
    (folder / families.FRONT_END).write_text('{}')
  return folder


def test_what_is_no_audio_encoder_is_refused(tmp_path, monkeypatch):
  folder = write_small(tmp_path / 'text', 'bert')
  with pytest.raises(ValueError, match="text: a model of type 'bert', expected "
                     'an audio encoder: audio-spectrogram-transformer, clap, '):
    encoders.by_name(f'hf:{folder}')
  folder = write_small(tmp_path / 'bare', 'hubert', front_end=False)
  with pytest.raises(ValueError, match='bare: no preprocessor_config.json'):
    encoders.by_name(f'hf:{folder}')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='empty: no config.json'):
    encoders.by_name(f'hf:{tmp_path}/empty')
  (folder / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='bare: config.json is no JSON'):
    encoders.by_name(f'hf:{folder}')
  (folder / 'config.json').write_text('[]')
  with pytest.raises(ValueError, match='bare: config.json has no model_type'):
    encoders.by_name(f'hf:{folder}')
  with pytest.raises(ValueError, match='no such folder, and no hub id'):
    encoders.by_name(f'hf:{tmp_path}/nowhere')
  monkeypatch.setitem(sys.modules, 'torch', None)
  folder = write_small(tmp_path / 'sound', 'wavlm')
  with pytest.raises(ValueError, match=r'sound: needs torch \(pip install '
                     r"'audiorank\[transformers\]'\)"):
    encoders.by_name(f'hf:{folder}')


def test_dasheng_by_name_has_its_sizes_revision_and_licence(
    monkeypatch, tmp_path):
  """mispeech/dasheng-* go through our own reader, without torch."""
  snapshot = tmp_path / 'snapshots' / 'abc'
  shutil.copytree(records.SAMPLE / 'model', snapshot)
  card = snapshot / 'README.md'
  card.write_text('---\nlicense: apache-2.0\n---\n')
  asked = []

  def snapshot_download(name, allow_patterns, **options):
    asked.append((name, options))
    return str(snapshot)

  monkeypatch.setitem(sys.modules, 'torch', None)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(
      snapshot_download=snapshot_download))
  encoder = encoders.by_name('hf:mispeech/dasheng-base@v1', layer='all')
  assert set(map(str, asked)) == {
      "('mispeech/dasheng-base', {'revision': 'v1'})"}
  about = encoder.about
  assert about['model_type'] == 'dasheng' and about['licence'] == 'apache-2.0'
  assert about['revision'] == 'abc' and about['depth'] == 2
  config, params, _ = encoders.weights(snapshot)
  assert about['parameters'] == sum(
      x.size for x in jax.tree.leaves(params['params'])) > 20_000
  waves = transformers_models.clips(16_000)
  z = encoder.scene(waves)
  np.testing.assert_allclose(
      z['final'], embed.scene(config, params, waves), atol=1e-5)
  assert list(z) == [0, 1, 'final']
  # The folder itself is the same model.
  local = encoders.by_name(f'hf:{snapshot}', layer='all')
  assert local.key == encoder.key


@real
@pytest.mark.filterwarnings('ignore')
def test_muq_equals_a_call_by_hand(tmp_path):
  """With random weights: pip install '.[muq]'."""
  torch, muq = map(pytest.importorskip, ('torch', 'muq'))
  if importlib.metadata.version('transformers') >= '5':
    pytest.skip('muq 0.1 does not work with transformers 5')
  config = transformers_models.MUQ
  torch.manual_seed(0)
  # transformers asks for an attention, of which the package says nothing.
  model = muq.MuQ({**config, 'w2v2_config': {
      **config['w2v2_config'], '_attn_implementation': 'eager'}}).eval()
  model.save_pretrained(tmp_path)
  # As in the repositories of OpenMuQ.
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'README.md').write_text('---\nlicense: cc-by-nc-4.0\n---\n')
  encoder = encoders.by_name(f'hf:{tmp_path}', layer='all')
  assert encoder.rate == 24_000 and encoder.about['model_type'] == 'muq'
  assert encoder.about['licence'] == 'cc-by-nc-4.0' and encoder.width == 32
  waves = transformers_models.clips(encoder.rate)[:4]
  z = encoder.scene([*waves, np.ones(48_000, np.float32)])
  for i, wave_S in enumerate(waves):
    with torch.no_grad():
      out = model(torch.from_numpy(wave_S)[None], output_hidden_states=True)
    for layer, x_BLD in zip((0, 1, 'final'), (
        *out.hidden_states[1:], out.last_hidden_state)):
      np.testing.assert_allclose(z[layer][i], x_BLD[0].mean(0).numpy(),
                                 atol=1e-5)
  z_BLD, ms_BL = encoders.by_name(f'hf:{tmp_path}').timestamps(waves[0][None])
  np.testing.assert_allclose(np.diff(ms_BL[0]), 40)
  assert abs(z_BLD.shape[1] - len(waves[0]) / 960) <= 1
  (tmp_path / 'model.safetensors').write_bytes(b'no')
  with pytest.raises(ValueError, match='cannot be loaded: ') as error:
    encoders.by_name(f'hf:{tmp_path}')
  assert '\n' not in str(error.value)


BEATS = '''
"""Tokens of 10 ms and 8 bands, as of BEATs, of a network without training."""
import torch

class BEATsConfig:
  def __init__(self, cfg):
    self.width = cfg['encoder_embed_dim']

class BEATs(torch.nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.layer = torch.nn.Linear(20, cfg.width)

  def extract_features(self, wave_BS):
    x_BLP = wave_BS[:, :len(wave_BS[0]) // 160 * 160].unflatten(1, (-1, 20))
    return self.layer(x_BLP), None
'''


@real
@pytest.mark.filterwarnings('ignore')
def test_the_module_of_hears_page_takes_beats(tmp_path, monkeypatch):
  """As written, on a stand-in for Microsoft's file BEATs.py."""
  torch = pytest.importorskip('torch')
  page = (pathlib.Path(encoders.__file__).parent / 'hear' / 'README.md'
          ).read_text()
  (code,) = [block for block in page.split('```')
             if 'from BEATs import' in block]
  code = code.removeprefix('py')
  (tmp_path / 'BEATs.py').write_text(BEATS)
  (tmp_path / 'my_beats.py').write_text(code)
  monkeypatch.syspath_prepend(str(tmp_path))
  module = importlib.import_module('BEATs')
  torch.manual_seed(0)
  model = module.BEATs(module.BEATsConfig({'encoder_embed_dim': 768}))
  torch.save({'cfg': {'encoder_embed_dim': 768}, 'model': model.state_dict()},
             tmp_path / 'weights.pt')
  encoder = encoders.module('my_beats', str(tmp_path / 'weights.pt'))
  waves = transformers_models.clips(16_000)
  z_ND = encoder.scene(waves)
  assert z_ND.shape == (len(waves), 768) and encoder.about['parameters'] == (
      21 * 768)
  for wave_S, z_D in zip(waves, z_ND):
    with torch.no_grad():
      x_LD = model.extract_features(torch.from_numpy(wave_S)[None])[0][0]
    if len(wave_S) >= 640:  # Shorter clips are padded to one patch of ours.
      np.testing.assert_allclose(z_D, x_LD.mean(0).numpy(), atol=1e-5)
  z_BLD, ms_BL = encoder.timestamps(waves[0][None])
  assert z_BLD.shape[1] == ms_BL.shape[1] == len(waves[0]) // 160
  np.testing.assert_allclose(np.diff(ms_BL[0]), 10, rtol=1e-3)


def test_muq_names_its_package(tmp_path, monkeypatch):
  (tmp_path / 'config.json').write_text(json.dumps(transformers_models.MUQ))
  monkeypatch.setattr(families, 'libraries', lambda name: (None, None))
  monkeypatch.setitem(sys.modules, 'muq', None)
  with pytest.raises(ValueError, match=r'needs the package muq \(pip install '
                     r"'audiorank\[muq\]'\)"):
    encoders.by_name(f'hf:{tmp_path}')
  monkeypatch.setitem(sys.modules, 'muq', types.ModuleType('muq'))
  monkeypatch.setattr(families.importlib.metadata, 'version',
                      lambda name: '5.24.0')
  with pytest.raises(ValueError, match=r'muq needs transformers 4, found 5.24'):
    encoders.by_name(f'hf:{tmp_path}')


def test_the_hub_says_why_in_one_line(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match=r"audiorank\[transformers\]"):
    encoders.by_name('hf:some/one')

  # Named as in huggingface_hub, where each is a paragraph.
  class RepositoryNotFoundError(OSError):
    pass

  class GatedRepoError(RepositoryNotFoundError):
    pass

  class ConnectError(Exception):
    pass

  class LocalEntryNotFoundError(OSError):
    pass

  asked = []

  def snapshot_download(name, allow_patterns, **options):
    asked.append((name, tuple(allow_patterns), options))
    if name == 'a/gated':
      raise GatedRepoError('401\nAccess is restricted')
    if name == 'a/absent':
      raise RepositoryNotFoundError('404\nNot found')
    if name == 'a/text':
      folder = tmp_path / 'snapshots' / 'abc'
      if not folder.exists():
        folder.parent.mkdir()
        write_small(folder, 'bert')
      return str(folder)
    try:
      raise ConnectError('[Errno -2]')
    except ConnectError as error:
      raise LocalEntryNotFoundError('long\ntext') from error

  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(
      snapshot_download=snapshot_download))
  for name, text in (('a/gated', 'is gated: accept its terms'),
                     ('a/absent', 'no such repository'),
                     ('a/off', 'cannot be reached, and the files are not')):
    with pytest.raises(ValueError, match=text) as error:
      encoders.by_name(f'hf:{name}')
    assert '\n' not in str(error.value)
  # The weights of what is no audio encoder are never downloaded.
  with pytest.raises(ValueError, match="type 'bert'"):
    encoders.by_name('hf:a/text@v2')
  assert asked[-1] == ('a/text', families.SMALL, {'revision': 'v2'})
  assert hub.revision_of(tmp_path / 'snapshots' / 'abc') == 'abc'


@pytest.mark.parametrize('card, licence', [
    ('---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: no\n',
     'apache-2.0'), ('# Plain', None), ('---\ntags: a\n---\n', None)])
def test_the_licence_is_that_of_the_card(tmp_path, card, licence):
  (tmp_path / 'README.md').write_text(card)
  assert hub.licence(tmp_path) == licence


def test_clips_of_a_call_are_limited_in_seconds_and_lengths():
  adapter = families.Adapter(
      None, types.SimpleNamespace(sampling_rate=100), 'x', 1, 1, '', 0, False,
      None, None, None, (0, 1))
  lengths = [100, 300, 100, 4000, 100, 1]
  parts = [p.tolist() for p in families.groups(adapter, lengths, 2)]
  assert parts == [[5], [0, 2], [4], [1], [3]]
  ragged = adapter._replace(ragged=True, window=8000)
  assert [len(p) for p in families.groups(ragged, lengths, 64)] == [2, 2, 2]
