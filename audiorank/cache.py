"""Embeddings on disk, found again by what they were made of.

  <root>/<encoder>/<task>-<digest>.npz    the arrays
  <root>/<encoder>/<task>-<digest>.json   what they are of, for people

`encoder` digests the weights, layer, clamp and batch; the file's digest the
task's audio and the software that numbers hang on. Deleting anything here is
safe.
"""

import importlib.metadata
import json
import pathlib
import shutil

import jax
import numpy as np

from audiorank import files

FORMAT = 1  # Raised when the same key would mean other numbers.


def default():
  """Returns the folder of this user; AUDIORANK_CACHE moves it."""
  return str(files.cache_folder('embeddings'))


def versions():
  """Returns what embeddings may differ by at equal weights and audio."""
  out = {}
  for name in ('audiorank', 'jax', 'numpy'):
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      out[name] = 'not installed'  # Run from its folder.
  return {**out, 'backend': jax.default_backend()}


def fetch(root, key, name, made_of, make):
  """Returns (arrays, whether they were there): {name: array}.

  Args:
    root: the cache's folder; '' computes.
    key: the encoder's; '' computes.
    name: of the task, for the file's name.
    made_of: JSON material that decides the arrays beside the encoder.
    make: computes them; called where they are not there or are damaged.
  """
  if not (root and key):
    return make(), False
  said = {'format': FORMAT, 'encoder': key, 'made_of': made_of,
          'versions': versions()}
  path = pathlib.Path(root) / key / f'{name}-{files.digest(said)}.npz'
  arrays = files.read_cached(path, read)
  if arrays is not None:
    return arrays, True
  arrays = make()
  files.write_cached(path, lambda part: write(part, arrays))
  files.write_cached(path.with_suffix('.json'),
                     lambda part: part.write_text(json.dumps(said, indent=1)))
  return arrays, False


def read(path):
  """Returns the arrays of a file of the cache."""
  # Opened here: np.load would leave a damaged file open.
  with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
    return dict(arrays)


def write(path, arrays):
  """Writes the arrays of a file of the cache."""
  with open(path, 'wb') as file:  # np.savez would append .npz to a name.
    np.savez(file, **arrays)


def listing(root):
  """Returns [(path below root, bytes)] of what is cached, the oldest first."""
  root = pathlib.Path(root)
  files = sorted(root.glob('*/*.npz'), key=lambda p: p.stat().st_mtime)
  return [(str(p.relative_to(root)), p.stat().st_size) for p in files]


def clear(root):
  """Deletes what is cached and nothing else; returns how many files."""
  root = pathlib.Path(root)
  found = listing(root)
  for name, _ in found:
    (root / name).unlink(missing_ok=True)
    (root / name).with_suffix('.json').unlink(missing_ok=True)
  for folder in {(root / name).parent for name, _ in found}:
    if not any(folder.iterdir()):
      shutil.rmtree(folder)
  return len(found)
