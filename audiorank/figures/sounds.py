"""Figures of sounds: what a model hears, where it puts the clips.

Shapes: M mels, T frames, N clips, D width.
"""

from typing import Any

import numpy as np

from audiorank.figures import style


def spectrogram(mel_MT: np.ndarray, hop: float = .01,
                ax: style.Axes | None = None) -> style.Axes:
  """A log-mel, as the model gets it.

  Args:
    mel_MT: dB, of audio.log_mel.
    hop: seconds between frames.
    ax: Axes to draw in, or None.
  """
  mel_MT = np.asarray(mel_MT)
  if mel_MT.ndim != 2:
    raise ValueError(f'a log-mel of shape {mel_MT.shape}: expected (mels, '
                     'frames)')
  ax = ax or style.axes((7., 2.6))
  # 80 dB below the loudest is as good as silence.
  image = ax.imshow(mel_MT, origin='lower', aspect='auto', cmap='magma',
                    extent=(0, mel_MT.shape[1] * hop, 0, mel_MT.shape[0]),
                    vmin=mel_MT.max() - 80)
  ax.set_xlabel('seconds')
  ax.set_ylabel('mel bin')
  ax.figure.colorbar(image, ax=ax, label='dB', pad=.015, aspect=20)
  return ax


def embedding_map(z_ND: np.ndarray, labels: Any = None,
                  ax: style.Axes | None = None) -> style.Axes:
  """Clips on the two directions in which their embeddings differ most.

  Principal components of the centred embeddings; the axes say how much of the
  variance each holds, which is why far apart may still mean alike.

  Args:
    z_ND: embeddings.
    labels: a label a clip, coloured up to as many as there are colours and
      markers; or None.
    ax: Axes to draw in, or None.
  """
  z_ND = np.asarray(z_ND, float)
  if z_ND.ndim != 2 or len(z_ND) < 3 or z_ND.shape[1] < 2:
    raise ValueError(f'embeddings of shape {z_ND.shape}: expected at least 3 '
                     'clips of width 2')
  ax = ax or style.axes()
  z_ND = z_ND - z_ND.mean(0)
  _, s_K, v_KD = np.linalg.svd(z_ND, full_matrices=False)
  if not s_K[0]:
    raise ValueError('nothing to draw: all embeddings are one vector')
  at = z_ND @ v_KD[:2].T
  names = np.full(len(at), '')
  if labels is not None:
    names = np.asarray([str(name) for name in labels])
  if len(names) != len(at):
    raise ValueError(f'{len(names)} labels for {len(at)} clips')
  kinds = style.ordered(set(names.tolist()))
  handles = []
  for i, kind in enumerate(kinds):
    here = names == kind
    # All colours first, then the next marker: colour is seen first.
    color = style.PALETTE[i % len(style.PALETTE)]
    shape = style.MARKERS[i // len(style.PALETTE) % len(style.MARKERS)]
    ax.scatter(at[here, 0], at[here, 1], s=16, color=color, marker=shape,
               alpha=.8, lw=0)
    handles.append(style.marker(shape, kind, color=color))
  share = s_K ** 2 / (s_K ** 2).sum()
  ax.set_xlabel(f'first component ({share[0]:.0%} of the variance)')
  ax.set_ylabel(f'second component ({share[1]:.0%})')
  if labels is not None and len(kinds) <= 16:
    style.above(ax, handles, 5)
  return ax
