"""Embeddings on disk, found again by what they were made of.

  <root>/<encoder>/<task>-<digest>.npz    the arrays
  <root>/<encoder>/<task>-<digest>.json   what they are of, for people

`encoder` digests the weights, layer, clamp and batch; the file's digest the
task's audio and the software that numbers hang on. Deleting anything here is
safe.
"""

import importlib.metadata
import os
import pathlib
import shutil
import zipfile

from absl import logging
import jax
import numpy as np

from audiorank import records

FORMAT = 1  # Raised when the same key would mean other numbers.


def default():
  """Returns the folder of this user; AUDIORANK_CACHE moves it."""
  root = os.environ.get('AUDIORANK_CACHE', '~/.cache/audiorank')
  return str(pathlib.Path(root).expanduser() / 'embeddings')


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
  path = pathlib.Path(root) / key / f'{name}-{records.digest(said)}.npz'
  if path.is_file():
    try:
      # Opened here: np.load would leave a damaged file open.
      with open(path, 'rb') as file, np.load(
          file, allow_pickle=False) as arrays:
        return dict(arrays), True
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
      logging.warning('%s: damaged (%s); embedding again', path, error)
  arrays = make()
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(part, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
  records.write_json(path.with_suffix('.json'), said)
  return arrays, False


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
