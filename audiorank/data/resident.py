"""A corpus in the memory of a device, where batches are gathered.

An accelerator trains faster on small models than a host can send audio. A
corpus that fits into its memory is sent once, as int16, and all runs of the
process share it. After that the host sends three numbers per clip. The clips
are bit for bit those of `clips.stream`.

Shapes: B clips of a batch, N records, S samples of a clip, R rows of audio, W
samples of a row, T samples of the rows that contain a clip, 3 numbers of a
clip: the row of its first sample, the place of that sample in the row, and the
samples up to the end of the record, at most S. The rest of the clip is silence.
"""

from collections.abc import Iterator
import concurrent.futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import typing as npt

from audiorank.data import clips as clips_lib
from audiorank.data import folder

# A sample is addressed by its row and its place in the row. A single int32
# offset would overflow after 37 hours.
W = 1024
# The corpus that was loaded last, by what it was loaded from.
_LOADED: dict[tuple[folder.Corpus, jax.sharding.Sharding], 'Resident'] = {}


class Resident(NamedTuple):
  """The audio of a corpus on devices.

  audio_RW: int16, one record after the other, each from the start of a row.
  row_N: first row of each record, by its number in the whole corpus.
  """
  audio_RW: jax.Array
  row_N: npt.NDArray[np.int64]


def size(corpus: folder.Corpus) -> int:
  """Returns an upper limit of the bytes that a corpus takes on a device."""
  return int(2 * (corpus.hours * 3600 * corpus.rate + W * len(corpus)))


def load(corpus: folder.Corpus, sharding: jax.sharding.Sharding) -> Resident:
  """Returns a corpus on devices; reads it unless it was the last one loaded.

  Args:
    corpus: a Corpus; the same object is not read twice.
    sharding: of the audio: every device has all of it.

  Raises:
    ValueError: a damaged record; names it.
  """
  key = corpus, sharding
  if key not in _LOADED:
    # Freed first: there need not be room for two.
    _LOADED.clear()
    _LOADED[key] = _load(corpus, sharding)
  return _LOADED[key]


def release() -> bool:
  """Frees the corpus on the devices; returns whether there was one."""
  loaded = bool(_LOADED)
  _LOADED.clear()
  return loaded


def _load(corpus: folder.Corpus, sharding: jax.sharding.Sharding) -> Resident:
  index_N, length_N = corpus.rows(), corpus.lengths()
  rows_N = -(-length_N // W)
  first_N = np.cumsum(rows_N) - rows_N
  audio_RW = np.zeros((int(rows_N.sum()), W), np.int16)
  read = folder.row_reader(corpus)

  def fetch(n: int) -> None:
    wave_S = read(index_N[n], 0, int(length_N[n]))
    rows = slice(first_N[n], first_N[n] + rows_N[n])
    audio_RW[rows].reshape(-1)[:len(wave_S)] = wave_S

  with concurrent.futures.ThreadPoolExecutor() as pool:
    # A list, so that the first error of a thread is raised here.
    list(pool.map(fetch, range(len(index_N))))
  # -1: a record that was not selected has no row.
  row_N = np.full(len(corpus.index.samples_R), -1, np.int64)
  row_N[index_N] = first_N
  return Resident(
      jax.make_array_from_process_local_data(sharding, audio_RW), row_N)


def stream(resident: Resident, corpus: folder.Corpus, batch: int, samples: int,
           seed: int, first_step: int,
           rows: slice) -> Iterator[npt.NDArray[np.int32]]:
  """Returns an endless iterator of where the clips of each batch are.

  Args:
    resident: contains all records of the corpus.
    corpus, batch, samples, seed, first_step: as of `clips.stream`.
    rows: those of the global batch that this process has.

  Returns:
    iterator of clip_B3 int32; see the top of this module.
  """
  clips = clips_lib.schedule(corpus, batch, samples, seed)
  index_N, length_N = corpus.rows(), corpus.lengths()
  step = first_step
  while True:
    record_B, start_B = (array[rows] for array in clips(step))
    # The same schedule as `clips.stream`, in rows instead of records.
    row_B = resident.row_N[index_N[record_B]] + start_B // W
    length_B = np.minimum(length_N[record_B] - start_B, samples)
    yield np.stack([row_B, start_B % W, length_B], 1).astype(np.int32)
    step += 1


def gather(audio_RW: jax.Array, clip_B3: jax.Array, samples: int) -> jax.Array:
  """Returns the clips, wave_BS int16; called inside a compiled program."""
  row_B, place_B, length_B = clip_B3.T
  rows = -(-samples // W) + 1  # A clip may begin anywhere in its first row.
  # Rows past the end of the audio repeat the last one, and `inside_BS` sets
  # what does not belong to the clip to 0.
  at_BR = row_B[:, None] + jnp.arange(rows)[None]
  rows_BRW = audio_RW.at[at_BR].get(mode='clip')
  wave_BT = rows_BRW.reshape(len(row_B), rows * W)
  # Whole rows are gathered, then cut at the clip's first sample.
  wave_BS = jax.vmap(lambda wave_T, place: jax.lax.dynamic_slice(
      wave_T, (place,), (samples,)))(wave_BT, place_B)
  inside_BS = jnp.arange(samples)[None] < length_B[:, None]
  return jnp.where(inside_BS, wave_BS, 0)
