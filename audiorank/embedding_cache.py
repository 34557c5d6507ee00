"""A cache of embeddings on disk. The key is a digest of all they depend on.

  <root>/<encoder>/<task>-<digest>.npz    the arrays
  <root>/<encoder>/<task>-<digest>.json   what they depend on, to be read

`encoder` is a digest of the weights, layer, clamp and batch; the file's own
digest adds the task's audio and the versions of the software. Everything here
may be deleted at any time.
"""

from collections.abc import Callable
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
import numpy as np

from audiorank import files

FORMAT = 1  # To be raised when the same key would mean other numbers.

Arrays = dict[str, Any]  # Name -> array.


def default() -> str:
  """Returns this user's folder; see files.cache_folder."""
  return str(files.cache_folder('embeddings'))


def versions() -> dict[str, str]:
  """Returns the versions and the backend, which change the last digits."""
  out = {}
  for name in ('audiorank', 'jax', 'numpy'):
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      out[name] = 'not installed'  # Run from its checkout.
  return {**out, 'backend': jax.default_backend()}


def fetch(root: str, encoder: str, name: str, depends_on: Callable[[], Any],
          compute: Callable[[], Arrays]) -> tuple[Arrays, bool]:
  """Returns (arrays, whether they came from the cache).

  Args:
    root: the cache's folder; '' for no cache.
    encoder: digest of the encoder; '' for no cache.
    name: of the task, for the file's name.
    depends_on: returns a JSON tree of what determines the arrays besides the
      encoder; called if there is a cache.
    compute: returns the arrays; called if they are missing or damaged.
  """
  # An encoder of unknown weights, such as a HEAR module, has no digest.
  if not (root and encoder):
    return compute(), False
  # These keys enter every digest: renaming one would empty the cache.
  about = {'format': FORMAT, 'encoder': encoder, 'made_of': depends_on(),
           'versions': versions()}
  path = files.path(root) / encoder / f'{name}-{files.digest(about)}.npz'
  arrays = files.read_cached(path, read)
  if arrays is not None:
    return arrays, True
  arrays = compute()
  files.write_cached(path, lambda part: write(part, arrays))
  # The .json says in plain text what the digest stands for, and `is_own`
  # recomputes the digest from it.
  files.write_cached(path.with_suffix('.json'),
                     lambda part: part.write_text(json.dumps(about, indent=1)))
  return arrays, False


def read(path: pathlib.Path) -> Arrays:
  """Returns the arrays of a file of the cache."""
  # Opened here, because np.load would leave a damaged file open.
  with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
    return dict(arrays)


def write(path: pathlib.Path, arrays: Arrays) -> None:
  """Writes the arrays of a file of the cache."""
  with open(path, 'wb') as file:  # np.savez would append .npz to a name.
    np.savez(file, **arrays)


def listing(root: files.Path) -> list[tuple[str, int]]:
  """Returns [(path below root, bytes)] of the cached files, oldest first.

  Files that `fetch` did not write are not listed.
  """
  folder = files.path(root)
  cached = [p for p in folder.glob('*/*.npz') if is_own(p)]
  cached.sort(key=lambda p: p.stat().st_mtime_ns)
  return [(str(p.relative_to(folder)), p.stat().st_size) for p in cached]


def is_own(path: pathlib.Path) -> bool:
  """Returns whether `fetch` wrote a file, by the digest in its name."""
  # `clear` deletes what this accepts, so a name like ours is not enough.
  try:
    about = files.read_json(path.with_suffix('.json'))
    return path.stem.endswith(f'-{files.digest(about)}')
  except (OSError, ValueError):
    return False


def clear(root: files.Path) -> int:
  """Deletes the cached files and nothing else; returns their number."""
  folder = files.path(root)
  cached = [folder / name for name, _ in listing(folder)]
  for path in cached:
    path.unlink(missing_ok=True)
    path.with_suffix('.json').unlink(missing_ok=True)
  # Folders of encoders without any file left.
  for parent in {path.parent for path in cached}:
    if not files.names(parent):
      files.remove(parent)
  return len(cached)
