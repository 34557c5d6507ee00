"""Official weights both ways, and the official code's numbers at every stage.

The reference arrays were made with PyPI dasheng 0.0.9. Tolerances: float32
with other orders of summation through a few layers.
"""

import datetime
import json
import os
import pathlib
import pickle
import sys

import jax
import librosa
import numpy as np
import pytest
import safetensors.numpy

from audiorank import audio
from audiorank import dasheng
from audiorank import model
from audiorank import objectives
from audiorank.dasheng import sizes

HEADS = {'heads': 4, 'decoder': {'heads': 4}}
encode = jax.jit(model.encode, static_argnames=('config', 'layers'))
log_mel = jax.jit(audio.log_mel, static_argnames='clamp')
TOKENS = 5e-5  # Absolute, on tokens of order one.
BUFFERS = ('front_end.0.spectrogram.window', 'front_end.0.mel_scale.fb',
           'init_bn.1.num_batches_tracked')


def shapes(width=32, depth=2, positions=50, ratio=4, decoder=None):
  """Names and shapes of the official classes, written out once more."""
  def block(name, D):
    return {
        f'{name}.norm1.weight': (D,), f'{name}.norm1.bias': (D,),
        f'{name}.attn.qkv.weight': (3 * D, D),
        f'{name}.attn.qkv.bias': (3 * D,),
        f'{name}.attn.proj.weight': (D, D), f'{name}.attn.proj.bias': (D,),
        f'{name}.norm2.weight': (D,), f'{name}.norm2.bias': (D,),
        f'{name}.mlp.fc1.weight': (ratio * D, D),
        f'{name}.mlp.fc1.bias': (ratio * D,),
        f'{name}.mlp.fc2.weight': (D, ratio * D), f'{name}.mlp.fc2.bias': (D,)}

  D = width
  out = {'time_pos_embed': (1, D, 1, positions), 'freq_pos_embed': (1, D, 1, 1),
         'init_bn.1.weight': (64,), 'init_bn.1.bias': (64,),
         'init_bn.1.running_mean': (64,), 'init_bn.1.running_var': (64,),
         'patch_embed.proj.weight': (D, 1, 64, 4),
         'patch_embed.proj.bias': (D,), 'norm.weight': (D,), 'norm.bias': (D,)}
  for i in range(depth):
    out |= block(f'blocks.{i}', D)
  if decoder:
    W = decoder
    out = {f'encoder.{name}': shape for name, shape in out.items()}
    out |= {'decoder.mask_token': (1, 1, W),
            'decoder.pos_embed': (1, positions + 1, W),
            'decoder.input_proj.weight': (W, D),
            'decoder.input_proj.bias': (W,),
            **block('decoder.blocks.0', W),
            'decoder.norm.weight': (W,), 'decoder.norm.bias': (W,),
            'decoder.outputlayer.weight': (256, W),
            'decoder.outputlayer.bias': (256,)}
  return out


def random_state(seed=0, **size):
  rng = np.random.default_rng(seed)
  return {name: rng.uniform(.1, 1, shape).astype(np.float32)
          for name, shape in shapes(**size).items()}


@pytest.fixture(scope='module')
def parity(shared):
  with np.load(shared / 'fixtures' / 'dasheng' / 'parity_tiny.npz') as z:
    arrays = dict(z)
  text = (shared / 'fixtures' / 'dasheng' / 'parity_tiny.json').read_text()
  return arrays, json.loads(text)


@pytest.fixture(scope='module')
def official(parity):
  """The reference weights in our form: (state, config, params)."""
  state = {name[2:]: x for name, x in parity[0].items()
           if name.startswith('w/')}
  return state, *dasheng.from_state_dict(state, HEADS)


def wave(x_BS):
  return x_BS.astype(np.float32) / 32767


@pytest.fixture(scope='module')
def mel_BMT(parity):
  return log_mel(wave(parity[0]['audio_i16']), clamp='batch')


def test_sizes_come_from_the_shapes(official):
  _, config, _ = official
  assert config.model.to_dict() == {
      'width': 128, 'depth': 2, 'heads': 4, 'mlp_ratio': 4, 'mels': 64,
      'patch_frames': 4, 'target_frames': 200, 'dtype': 'float32',
      'frontend': 'log_mel', 'remat': 'auto', 'unroll': 0,
      'decoder': {'width': 64, 'depth': 1, 'heads': 4}}


def test_every_stage_equals_official(parity, official, mel_BMT):
  z, (_, config, params) = parity[0], official
  c = config.model
  np.testing.assert_allclose(mel_BMT, z['db'], atol=5e-3)
  encoder = model.encoder_variables(params)
  patches_BLP = model.Encoder(c).apply(encoder, mel_BMT, method='patches')
  np.testing.assert_allclose(
      model.unpatchify(patches_BLP, 4), z['bn'][:, :, :128], atol=TOKENS)
  own = encoder['params']
  embedded_BLD = patches_BLP @ own['patch']['kernel'] + own['patch']['bias'][
      None, None]
  np.testing.assert_allclose(
      embedded_BLD, z['patch_embed'].transpose(0, 2, 1), atol=TOKENS)
  at_LD = own['time'][:32] + own['freq'][None]
  np.testing.assert_allclose(
      embedded_BLD + at_LD[None], z['tokens_in'], atol=TOKENS)
  z_BLD, layers_NBLD = encode(c, params, mel_BMT, layers=True)
  for i in (0, 1):
    np.testing.assert_allclose(
        layers_NBLD[i], z[f'block{i}_out'], atol=TOKENS)
  np.testing.assert_allclose(z_BLD, z['emb'], atol=TOKENS)
  np.testing.assert_allclose(z_BLD.mean(1), z['emb_mean'], atol=TOKENS)


def test_lengths_mask_keys(parity, official, mel_BMT):
  z, (_, config, params) = parity[0], official
  z_BLD = encode(config.model, params, mel_BMT,
                       valid_L=z['x_length'] // 640)
  np.testing.assert_allclose(z_BLD, z['emb_xlength'], atol=TOKENS)


def test_long_audio_goes_in_chunks(parity, official):
  z, (_, config, params) = parity[0], official
  mel_BMT = log_mel(wave(z['long_i16']), clamp='batch')
  np.testing.assert_allclose(mel_BMT, z['long_db'], atol=5e-3)
  z_BLD = encode(config.model, params, mel_BMT)
  np.testing.assert_allclose(z_BLD, z['long_emb'], atol=TOKENS)


@pytest.mark.parametrize('case,ratio,group', [('g75', .75, 2), ('u50', .5, 1)])
def test_masking_and_losses_equal_official(
    parity, official, mel_BMT, case, ratio, group):
  z, (_, config, params) = parity[0], official
  c = config.model
  keep_BK, drop_BR = model.mask_from_noise(
      z[f'{case}/noise'], 32, ratio, group)
  mask_BL = np.ones((2, 32))
  np.put_along_axis(mask_BL, np.asarray(keep_BK), 0, 1)
  np.testing.assert_array_equal(mask_BL, z[f'{case}/mask'])
  np.testing.assert_array_equal(
      np.argsort(np.concatenate([keep_BK, drop_BR], 1), 1),
      z[f'{case}/ids_restore'])
  encoder = model.encoder_variables(params)
  patches_BLP = model.Encoder(c).apply(encoder, mel_BMT, method='patches')
  latent_BKD = jax.jit(model.Encoder(c).apply)(encoder, patches_BLP, keep_BK)
  np.testing.assert_allclose(latent_BKD, z[f'{case}/latent'], atol=TOKENS)
  pred_BRP = jax.jit(model.MAE(c).apply)(params, mel_BMT, keep_BK, drop_BR)
  np.testing.assert_allclose(
      pred_BRP, model.take(z[f'{case}/pred'], np.asarray(drop_BR)),
      atol=TOKENS)
  raw_BLP = model.patchify(mel_BMT, 4)
  np.testing.assert_allclose(raw_BLP, z['target_patches'], atol=5e-3)
  for by, name in (('patch', 'true'), ('batch', 'global'), ('none', 'false')):
    loss = objectives.reconstruction(
        pred_BRP, model.take(objectives.normalise(raw_BLP, by), drop_BR))
    np.testing.assert_allclose(loss, z[f'{case}/loss_{name}'], rtol=2e-4)


def test_training_step_equals_official(parity, official):
  (z, facts), (_, config, params) = parity, official
  c, mel_BMT = config.model, z['db']
  keep_BK, drop_BR = model.mask_from_noise(z['g75/noise'], 32, .75, 2)
  target_BRP = model.take(
      objectives.normalise(model.patchify(mel_BMT, 4)), drop_BR)

  def loss_of(tree):
    pred_BRP, new = model.MAE(c).apply(
        {**params, 'params': tree}, mel_BMT, keep_BK, drop_BR, train=True,
        mutable=['batch_stats'])
    return objectives.reconstruction(pred_BRP, target_BRP), new

  run = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
  (loss, new), grads = run(params['params'])
  np.testing.assert_allclose(loss, z['train/loss'], rtol=2e-4)
  stats = new['batch_stats']['encoder']['norm_mel']
  np.testing.assert_allclose(
      stats['mean'], z['train/running_mean_after'], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
      stats['var'], z['train/running_var_after'], rtol=1e-5)
  # A gradient has the tree of the parameters, so it can be named officially.
  named = dasheng.to_state_dict(
      config, {'params': grads, 'batch_stats': new['batch_stats']})
  # Torch on a CPU gets the affine gradient of BatchNorm wrong where its input
  # is transposed in memory, as the front end's output is: the bias gradient
  # is not the sum of the output's. Finite differences decide instead.
  for name in ('scale', 'bias'):
    grad_M = grads['encoder']['norm_mel'][name]
    size = np.linalg.norm(grad_M)
    ends = []
    for h in (.05, -.05):
      moved = jax.tree.map(lambda x: x, params['params'])
      moved['encoder']['norm_mel'][name] += h * grad_M / size
      ends.append(float(run(moved)[0][0]))
    np.testing.assert_allclose((ends[0] - ends[1]) / .1, size, rtol=.02)
  for name, want in facts['grad_norms_train'].items():
    if 'init_bn' in name:
      continue
    np.testing.assert_allclose(
        np.linalg.norm(named[name]), want, rtol=1e-3, err_msg=name)
  for name, ours in (
      ('patch_embed_bias', named['encoder.patch_embed.proj.bias']),
      ('block0_qkv_bias', named['encoder.blocks.0.attn.qkv.bias']),
      ('time_pos_embed', named['encoder.time_pos_embed'][0, :, 0]),
      ('mask_token', named['decoder.mask_token'])):
    want = z[f'train/grad_{name}']
    np.testing.assert_allclose(
        ours, want, atol=1e-3 * np.abs(want).max(), err_msg=name)


def test_round_trip_of_the_official_state_is_exact(official):
  state, config, params = official
  back = dasheng.to_state_dict(config, params)
  assert set(back) == set(state)
  for name, x in state.items():
    assert back[name].shape == x.shape and back[name].dtype == x.dtype, name
    if not name.endswith(BUFFERS):
      np.testing.assert_array_equal(back[name], x, err_msg=name)


@pytest.mark.parametrize('size', [
    {}, {'width': 96, 'depth': 3, 'positions': 7, 'ratio': 2},
    {'decoder': 32}, {'width': 64, 'decoder': 96, 'positions': 252}])
def test_round_trip_of_any_size(size):
  state = random_state(**size)
  config, params = dasheng.from_state_dict(state)
  back = dasheng.to_state_dict(config, params)
  prefix = 'encoder.' if 'decoder' in size else ''
  assert set(back) - set(state) == {f'{prefix}{name}' for name in BUFFERS}
  for name, x in state.items():
    np.testing.assert_array_equal(back[name], x, err_msg=name)
  # The tree is the one that the model itself makes.
  c = config.model
  made = jax.eval_shape(
      lambda: model.MAE(c).init(
          jax.random.key(0), np.zeros((1, 64, 16), np.float32),
          np.array([[0, 1]]), np.array([[2, 3]])))
  if 'decoder' not in size:
    made = {kind: {'encoder': tree['encoder']} for kind, tree in made.items()}
  assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, made)
  if 'decoder' not in size:
    encode(c, params, np.zeros((1, 64, 16), np.float32))


def test_prefixed_and_bare_encoders_are_the_same():
  state = random_state()
  config, params = dasheng.from_state_dict(state)
  again, same = dasheng.from_state_dict(
      {f'encoder.{name}': x for name, x in state.items()})
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, same, params)
  # An encoder's own variables, without the MAE's outer level, go out too.
  inner = {kind: tree['encoder'] for kind, tree in params.items()}
  back = dasheng.to_state_dict(config.model, inner)
  np.testing.assert_array_equal(back['time_pos_embed'],
                                state['time_pos_embed'])


def test_a_fine_tuned_classifier_is_left_out():
  state = random_state()
  _, params = dasheng.from_state_dict(
      {**state, 'outputlayer.0.weight': np.ones(32),
       'outputlayer.1.weight': np.ones((527, 32))})
  jax.tree.map(np.testing.assert_array_equal, params,
               dasheng.from_state_dict(state)[1])


@pytest.mark.parametrize('width,depth,heads,decoder', [
    (768, 1, 12, (512, 16)), (1280, 1, 16, (512, 16)),
    (1536, 40, 24, (768, 24)), (128, 1, 4, (512, 16)), (384, 1, 6, (512, 16))])
def test_heads_follow_the_published_rule(width, depth, heads, decoder):
  nothing = np.float32(0)
  tree = sizes.infer({
      name: np.broadcast_to(nothing, shape)
      for name, shape in shapes(width=width, depth=depth).items()},
                     '', False, {})
  assert tree['heads'] == heads
  assert (tree['decoder']['width'], tree['decoder']['heads']) == decoder


TRAINING = {'model': 'dasheng_base', 'mask_ratio': .75, 'batch_size': 32}


@pytest.mark.parametrize('config,heads', [
    ({'embed_dim': 96, 'num_heads': 2}, 2),
    ({'heads': 8}, 8),
    ({'model': {'heads': 8, 'width': 96}}, 8),
    ({**TRAINING, 'model_args': {'embed_dim': 96, 'num_heads': 4}}, 4),
    # The official training keeps the heads of the model it was named after.
    ({**TRAINING, 'model_args': {'embed_dim': 96, 'depth': 2}}, 12),
    ({**TRAINING, 'model': 'dasheng_06B', 'model_args': {'embed_dim': 96}},
     24),
    ({}, 3), (None, 3)])
def test_configs_of_every_dialect(config, heads):
  state = random_state(width=96)
  assert dasheng.from_state_dict(state, config)[0].model.heads == heads
  wrapped = {'model': state, 'config': config}
  assert dasheng.from_state_dict(wrapped)[0].model.heads == heads
  # What the caller says outweighs what the file says.
  assert dasheng.from_state_dict(
      wrapped, {'heads': 1, 'dtype': 'bfloat16'})[0].model.heads == 1


def test_free_fields_are_taken_over():
  c = dasheng.from_state_dict(
      random_state(), {'dtype': 'bfloat16', 'unroll': 2})[0].model
  assert (c.dtype, c.unroll, c.heads) == ('bfloat16', 2, 1)


@pytest.mark.parametrize('config,message', [
    ({'width': 64}, 'config.width: 64, but the tensors have 32'),
    ({'embed_dim': 64}, 'config.width: 64, but the tensors have 32'),
    ({'depth': 3}, 'config.depth: 3, but the tensors have 2'),
    ({'target_length': 1008},
     'config.target_frames: 1008, but the tensors have 200'),
    ({'mlp_ratio': 2.}, 'config.mlp_ratio: 2.0, but the tensors have 4'),
    ({'heads': 5}, 'config.heads: 5, expected a divisor of the width 32'),
    ({'num_heads': 4, 'init_values': 1e-5},
     'config.init_values: 1e-05, expected None'),
    ({'model_args': {'hop_size': 320}}, 'config.hop_size: 320, expected 160'),
    ({'model_args': {'patch_stride': [64, 2]}},
     r'config.patch_stride: \[64, 2\], expected \[64, 4\]'),
    ({'width': 32, 'hedas': 2}, 'config: unknown field hedas'),
    ('base', 'config: a str')])
def test_contradictions_name_the_field(config, message):
  with pytest.raises(ValueError, match=message):
    dasheng.from_state_dict(random_state(), config)


def test_a_decoder_is_checked_too():
  with pytest.raises(ValueError, match='config.decoder.width: 64, but'):
    dasheng.from_state_dict(random_state(decoder=32), {
        'decoder': {'width': 64}})


EVERY = sorted(shapes(decoder=48))


@pytest.mark.parametrize('name', EVERY)
def test_each_missing_tensor_is_named(name):
  state = random_state(decoder=48)
  del state[name]
  with pytest.raises(ValueError, match=f'{name}: missing, expected '):
    dasheng.from_state_dict(state)


@pytest.mark.parametrize('name', EVERY)
def test_each_wrong_shape_is_named_with_both(name):
  state = random_state(decoder=48)
  state[name] = state[name][..., None]
  with pytest.raises(ValueError) as caught:
    dasheng.from_state_dict(state)
  assert str(caught.value).startswith(f'{name}: shape {state[name].shape}, '
                                      'expected (')


@pytest.mark.parametrize('name', [
    'blocks.0.ls1.gamma', 'cls_token', 'blocks.1.attn.rel', 'surprise'])
def test_extra_tensors_are_named(name):
  with pytest.raises(ValueError, match=rf'{name}: shape \(32,\), expected no'):
    dasheng.from_state_dict({**random_state(), name: np.ones(32)})


def test_other_wrong_tensors_are_named():
  state = random_state()
  state['norm.bias'][3] = np.nan
  with pytest.raises(ValueError, match='norm.bias: 1 of 32 values are not'):
    dasheng.from_state_dict(state)
  state = random_state()
  del state['blocks.0.norm1.bias'], state['blocks.0.norm2.bias']
  with pytest.raises(ValueError, match=r'norm1.bias: .*\(2 missing in all\)'):
    dasheng.from_state_dict(state)
  slaney = librosa.filters.mel(
      sr=16_000, n_fft=512, n_mels=64, norm=None).T
  with pytest.raises(ValueError, match='mel_scale.fb: off by .* HTK'):
    dasheng.from_state_dict(
        {**random_state(), 'front_end.0.mel_scale.fb': slaney})
  with pytest.raises(ValueError, match=r'mel_scale.fb: shape \(257, 80\)'):
    dasheng.from_state_dict({**random_state(), 'front_end.0.mel_scale.fb':
                             np.zeros((257, 80), np.float32)})
  with pytest.raises(ValueError, match=r'weight: shape \(32, 1, 128, 4\), '
                     r'expected \(32, 1, 64, 4\)'):
    dasheng.from_state_dict({**random_state(), 'patch_embed.proj.weight':
                             np.zeros((32, 1, 128, 4), np.float32)})


def test_arrays_that_do_not_fit_the_config_are_named():
  config, params = dasheng.from_state_dict(random_state())
  kernel = params['params']['encoder']['blocks']['qkv'].pop('kernel')
  with pytest.raises(ValueError, match='encoder/blocks/qkv/kernel: missing, '):
    dasheng.to_state_dict(config, params)
  params['params']['encoder']['blocks']['qkv']['kernel'] = kernel[:1]
  with pytest.raises(ValueError, match=r'qkv/kernel: shape \(1, 32, 96\), '
                     r'expected \(2, 32, 96\)'):
    dasheng.to_state_dict(config, params)


def test_safetensors(tmp_path):
  state = {f'encoder.{name}': x for name, x in random_state().items()}
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(state, path)
  config, params = dasheng.load(path)
  want_config, want = dasheng.from_state_dict(state)
  assert config == want_config
  jax.tree.map(np.testing.assert_array_equal, params, want)
  assert dasheng.load(path, {'heads': 2})[0].model.heads == 2


def test_bad_files(tmp_path):
  with pytest.raises(FileNotFoundError, match='none.safetensors: no such file'):
    dasheng.load(tmp_path / 'none.safetensors')
  with pytest.raises(ValueError, match='weights.npz: expected a file .pt'):
    dasheng.load(tmp_path / 'weights.npz')
  path = tmp_path / 'cut.safetensors'
  path.write_bytes(b'\x10\0\0\0\0\0\0\0{"a": ')
  with pytest.raises(ValueError, match='cut.safetensors: not a safetensors'):
    dasheng.load(path)
  path = tmp_path / 'lacking.safetensors'
  state = random_state()
  del state['norm.bias']
  safetensors.numpy.save_file(state, path)
  with pytest.raises(ValueError, match='lacking.safetensors: norm.bias: miss'):
    dasheng.load(path)


def test_torch_files(torch, tmp_path):
  state = random_state(width=96)
  want = dasheng.from_state_dict(state, {'heads': 12})[1]
  tensors = {name: torch.from_numpy(x) for name, x in state.items()}
  tensors |= {'init_bn.1.num_batches_tracked': torch.tensor(7)}
  path = tmp_path / 'model.pt'
  for dump, heads in (
      (tensors, 3), ({'model': tensors, 'config': {'num_heads': 8}}, 8),
      ({'model': tensors, 'config': {
          **TRAINING, 'model_args': {'embed_dim': 96},
          'outputdir': pathlib.PosixPath('experiments/base')}}, 12)):
    torch.save(dump, path)
    config, params = dasheng.load(path)
    assert config.model.heads == heads
    jax.tree.map(np.testing.assert_array_equal, params, want)
  torch.save({name: x.half() for name, x in tensors.items()}, path)
  halves = dasheng.load(path)[1]['params']['encoder']
  assert halves['time'].dtype == np.float32


class Trap:

  def __reduce__(self):
    return os.mkdir, ('sprung',)


def test_torch_files_execute_nothing(torch, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'model.pt'
  for guest in (Trap(), datetime.date(2024, 1, 1), np.arange(3)):
    torch.save({'model': {}, 'config': guest}, path)
    with pytest.raises(ValueError, match='model.pt: cannot be read as weigh'):
      dasheng.load(path)
  path.write_bytes(pickle.dumps(Trap()))
  with pytest.raises(ValueError, match='model.pt: cannot be read as weights'):
    dasheng.load(path)
  assert not (tmp_path / 'sprung').exists()
  torch.save([1, 2], path)
  with pytest.raises(ValueError, match='model.pt: contains a list, expected'):
    dasheng.load(path)


def test_torch_is_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  path = tmp_path / 'model.pt'
  path.write_bytes(b'')
  with pytest.raises(ValueError, match=r'model.pt: a .pt file needs torch'):
    dasheng.load(path)
