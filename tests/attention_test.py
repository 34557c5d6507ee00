"""Attention is one function, whatever computes it."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from audiorank import attention
from audiorank import sharding

OURS = ('pallas', 'plain', 'by_clip')
# (clips, tokens, heads, width of a head): the decoder's heads and the
# encoder's, heads that do not divide a register, narrow models; odd lengths.
SHAPES = {'decoder': (1, 250, 4, 32), 'encoder': (2, 61, 2, 64),
          'en1280': (1, 17, 8, 80), 'narrow': (1, 31, 2, 32)}


def reference(qkv_BLF, heads, valid_BL):
  B, L, F = qkv_BLF.shape
  q, k, v = jnp.unstack(qkv_BLF.reshape(B, L, 3, heads, -1), axis=2)
  mask = None if valid_BL is None else valid_BL[:, None, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(
      B, L, F // 3)


def inputs(shape, dtype='float32', seed=0):
  """Returns (qkv_BLF, gradient g_BLD)."""
  B, L, H, E = shape
  rng = np.random.default_rng(seed)
  return (jnp.asarray(rng.standard_normal((B, L, 3 * H * E)), dtype),
          jnp.asarray(rng.standard_normal((B, L, H * E)), dtype))


def lengths(shape):
  """Returns valid_BL: one clip short, one all padding."""
  B, L, *_ = shape
  return jnp.arange(L)[None] < jnp.array([L // 2, 0])[:B, None]


@functools.partial(jax.jit, static_argnames=('heads', 'name'))
def both(qkv_BLF, g_BLD, valid_BL, heads, name):
  """Returns attention's value and gradient."""
  run = (functools.partial(reference, heads=heads, valid_BL=valid_BL)
         if name == 'reference' else
         lambda x: attention.attend(x, heads, valid_BL, name))
  o_BLD, pull = jax.vjp(run, qkv_BLF)
  return o_BLD, pull(g_BLD)[0]


# Values and gradients are of order one: float32 rounds at 1.2e-7, bfloat16 at
# 8e-3, and each goes through two products.
@pytest.mark.parametrize('masked, dtype, tolerance', [
    (False, 'float32', 1e-6), (True, 'float32', 1e-6),
    (True, 'bfloat16', 2e-2)])
@pytest.mark.parametrize('size', SHAPES)
def test_value_and_gradient_are_the_librarys(size, masked, dtype, tolerance):
  shape = SHAPES[size]
  valid_BL = lengths(shape) if masked else None
  arguments = (*inputs(shape, dtype), valid_BL, shape[2])
  want = both(*arguments, 'reference')
  # Of clips at once and clip by clip the formulas are the same: seen once.
  for name in OURS if size == 'decoder' else OURS[:2]:
    for ours, theirs in zip(both(*arguments, name), want):
      assert ours.dtype == theirs.dtype
      ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
      np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', OURS)
def test_scanned_rematerialised_and_packed_it_is_the_same(name):
  """What training does to it: blocks in a scan, recomputed, several runs."""
  shape = 4, 12, 2, 32
  qkv_BLF, g_BLD = inputs(shape)

  def loss(qkv_BLF, name):
    def layer(x_BLD, _):
      qkv_BLF = jnp.concatenate([x_BLD, 2 * x_BLD, x_BLD], axis=2)
      if name == 'reference':
        return x_BLD + reference(qkv_BLF, 2, None), None
      return x_BLD + attention.attend(qkv_BLF, 2, None, name), None

    x_BLD, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False),
                            qkv_BLF[:, :, :64], length=3)
    return (x_BLD * g_BLD).sum()

  packed = jnp.stack([qkv_BLF, -qkv_BLF]) / 4
  ours, want = (jax.jit(jax.vmap(jax.grad(functools.partial(
      loss, name=n))))(packed) for n in (name, 'reference'))
  np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', OURS)
def test_every_device_attends_to_its_own_clips(mesh, name):
  shape = 8, 12, 4, 32
  rows = NamedSharding(mesh, P(mesh.axis_names))
  valid_BL = jnp.arange(12)[None] < jnp.arange(5, 13)[:, None]
  x = jax.device_put((*inputs(shape), valid_BL), rows)
  run = both.lower(*x, 4, name).compile()
  text = run.as_text()
  for collective in ('all-gather', 'all-reduce', 'all-to-all'):
    assert collective not in text
  want = both(*inputs(shape), valid_BL, 4, 'reference')
  for ours, theirs in zip(run(*x), want):
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize('name', OURS)
def test_packed_runs_keep_to_their_devices(name):
  """Two runs a device, all with one batch."""
  mesh = jax.make_mesh((4,), ('sweep',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:4])
  spread = NamedSharding(mesh, P('sweep'))

  def step(scale, qkv_BLF, _):
    return jax.grad(lambda s: attention.attend(
        s * qkv_BLF, 2, None, name).sum())(scale), scale

  packed = jax.jit(sharding.over_runs(
      jax.vmap(step, (0, None, 0)), spread, True))
  qkv_BLF, _ = inputs((4, 12, 2, 32))
  scale_K = jnp.linspace(.1, 2, 8)
  spread_K = jax.device_put(scale_K, spread)
  run = packed.lower(spread_K, qkv_BLF, spread_K).compile()
  assert 'all-' not in run.as_text()
  ours_K, _ = packed(spread_K, qkv_BLF, spread_K)
  want_K = jax.vmap(jax.grad(lambda s: reference(
      s * qkv_BLF, 2, None).sum()))(scale_K)
  np.testing.assert_allclose(ours_K, want_K, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('platform, shape, dtype, want', [
    ('gpu', (4, 250, 3 * 4 * 20), 'bfloat16', 'plain'),
    ('tpu', (4, 250, 768), 'float32', 'pallas'),
    ('gpu', (4, 250, 768), 'bfloat16', 'cudnn'),
    ('gpu', (4, 250, 768), 'float32', 'plain'),
    ('cpu', (4, 250, 768), 'float32', 'by_clip'),
    ('cpu', (4, 25, 768), 'float32', 'plain'),
    ('tpu', ('any', 250, 768), 'float32', 'plain')])
def test_the_platform_chooses(monkeypatch, platform, shape, dtype, want):
  monkeypatch.setattr(attention, 'has_cudnn', lambda: True)
  choose = functools.partial(
      attention.choose, platform, shape, 4, jnp.dtype(dtype))
  assert choose() == want
  if want == 'cudnn':
    assert choose(masked=True) == 'plain'
    monkeypatch.setattr(attention, 'has_cudnn', lambda: False)
    assert choose() == 'plain'


def test_an_unknown_implementation_is_named():
  with pytest.raises(ValueError, match="attention 'fast': expected one of p"):
    attention.attend(jnp.zeros((1, 4, 96)), 1, None, 'fast')


def products(jaxpr):
  """Yields the precision of every matrix product, loops included."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn.params['precision']
    for sub in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(
        x, 'eqns') or hasattr(x, 'jaxpr')):
      sub = getattr(sub, 'jaxpr', sub)
      if hasattr(sub, 'eqns'):
        yield from products(sub)


@pytest.mark.parametrize('name', OURS)
@pytest.mark.parametrize('dtype, want', [
    ('float32', jax.lax.Precision.HIGHEST),
    ('bfloat16', jax.lax.Precision.DEFAULT)])
def test_float32_is_float32_on_every_platform(name, dtype, want):
  """Whatever precision is around it; no TF32, no bfloat16 in its place."""
  qkv_BLF, g_BLD = inputs((2, 9, 2, 32), dtype)
  for around in ('default', 'highest'):
    with jax.default_matmul_precision(around):
      jaxpr = jax.make_jaxpr(
          lambda *a: both.__wrapped__(*a, None, 2, name))(qkv_BLF, g_BLD)
    precisions = list(products(jaxpr.jaxpr))
    assert len(precisions) >= 7
    assert set(precisions) == {(want, want)}
