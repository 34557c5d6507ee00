"""Which patches of a clip are hidden: groups of neighbours, drawn together.

Shapes: B batch, G groups of a clip, L patches, K visible ones, R hidden ones.
"""

import jax
import jax.numpy as jnp


def kept(L, ratio):
  """Returns how many of L tokens stay visible: int(L * (1 - ratio))."""
  return int(L * (1 - ratio))


def mask_from_noise(noise_BG, L, ratio, group):
  """Splits L tokens into kept and removed by ascending noise of groups.

  `group` consecutive tokens share one noise value and are kept or removed
  together (Dasheng masks pairs of 40 ms tokens); group 1 is unstructured.

  Returns:
    keep_BK, drop_BR: int32 token positions; K = kept(L, ratio), R = L - K.
  """
  B, G = noise_BG.shape
  if G * group != L:
    raise ValueError(f'{L} patches are not a multiple of mask.group {group}: '
                     'change the crop length or the group')
  order_BG = jnp.argsort(noise_BG, axis=1)
  order_BL = (order_BG[:, :, None] * group
              + jnp.arange(group)[None, None]).reshape(B, L)
  K = kept(L, ratio)
  return order_BL[:, :K], order_BL[:, K:]


def random_mask(key, B, L, ratio, group):
  """Draws keep_BK, drop_BR; see mask_from_noise."""
  noise_BG = jax.random.uniform(key, (B, L // group))
  return mask_from_noise(noise_BG, L, ratio, group)
