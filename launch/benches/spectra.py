"""Embeddings with known spectra, for benches: the hard ones among them.

Shapes: N clips, D width.
"""

import numpy as np

KINDS = ('isotropic', 'k^-0.5', 'k^-1', 'k^-2', 'exp(-k/20)', 'trained',
         'trained, hard', 'collapse 1e-2', 'collapse 1e-4', 'rank one + 1e-4',
         'dead dimensions')


def embeddings(kind: str, clips: int, width: int,
               seed: int = 0) -> np.ndarray:
  """Returns z_ND float32 whose covariance decays as `kind` says.

  'trained' has a mean of 3 standard deviations over k^-0.7, 'hard' one of 30
  over k^-1.2; a collapse is one vector plus noise of that size.
  """
  rng = np.random.default_rng(seed)
  noise_ND = rng.standard_normal((clips, width), np.float32)
  k_D = np.arange(1, width + 1, dtype=np.float32)
  mean_D = rng.standard_normal(width).astype(np.float32)
  if kind == 'isotropic':
    return noise_ND
  if kind.startswith('collapse'):
    return mean_D + np.float32(kind.split()[1]) * noise_ND
  if kind == 'rank one + 1e-4':
    return (rng.standard_normal((clips, 1)).astype(np.float32) * mean_D
            + np.float32(1e-4) * noise_ND)
  if kind == 'dead dimensions':
    noise_ND[:, : width // 4] = 0
    return noise_ND
  scale_D = {'k^-0.5': k_D ** -.5, 'k^-1': k_D ** -1., 'k^-2': k_D ** -2.,
             'exp(-k/20)': np.exp(-k_D / 20), 'trained': k_D ** -.7,
             'trained, hard': k_D ** -1.2}[kind]
  # A random rotation, so that directions do not lie along the axes.
  turn_DD = np.linalg.qr(rng.standard_normal((width, width)))[0]
  z_ND = (noise_ND * scale_D) @ turn_DD.astype(np.float32)
  offset = {'trained': 3., 'trained, hard': 30.}.get(kind, 0.)
  return z_ND + np.float32(offset * z_ND.std()) * mean_D
