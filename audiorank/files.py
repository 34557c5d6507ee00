"""The one way to read and write files of runs, corpora, caches and reports.

`path` turns a user's text into a path and refuses URLs, so that no URL is
ever taken for a folder. `replacing` writes a file whole or not at all; all
other writers use it. A cache file is read with `read_cached` and written
with `write_cached`: a damaged one is computed again, and a cache that cannot be
written costs time, never a result.

Buckets: every path that a user gives passes through `path`. It returns a
pathlib.Path today. For gs:// it could return an etils.epath.Path, which has the
same methods, once `replacing`, `lock` and `walk` support objects.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from typing import Any
from typing import IO

from absl import logging

Path = str | os.PathLike[str]


class LockHeld(Exception):
  """Another live process has the lock; the message says which."""


# At least two letters: one letter and a colon is a Windows drive.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):(/+)')
_COUNTER = itertools.count()  # For temporary names: threads never share one.
# The tool that mounts a bucket of each kind, for error messages.
_MOUNTS = {'gs': 'gcsfuse', 's3': 'mount-s3', 'az': 'blobfuse2'}


def path(name: Path, field: str = '') -> pathlib.Path:
  """Returns a local path; '~' is the user's home.

  Args:
    name: the user's text.
    field: the flag or config field that it came from, for the message.

  Raises:
    ValueError: a URL, or one that lost a slash (gs:/bucket); says what to do.
  """
  text = os.fspath(name)
  label = text
  if field:
    label = f'{field} {text}'
  match = _SCHEME.match(text)
  if match and match[1].lower() == 'file':
    raise ValueError(f'{label}: expected a path without file://')
  # os.path functions turn gs://bucket into gs:/bucket.
  if match and match[2] == '/':
    raise ValueError(f'{label}: a URL with one slash; expected a local folder, '
                     f'or ./{text} for a folder of that name')
  if match:
    tool = _MOUNTS.get(match[1].lower(), 'rclone')
    raise ValueError(f'{label}: expected a local folder: mount the bucket '
                     f'(such as with {tool}) and give the folder where it is '
                     'mounted')
  return pathlib.Path(text).expanduser()


@contextlib.contextmanager
def replacing(target: Path, sync: bool = True) -> Iterator[pathlib.Path]:
  """Yields a path to write; the file written there becomes `target`.

  The file appears under its name whole or not at all. Missing parent folders
  are created.

  Args:
    target: the file to create or replace.
    sync: wait until the bytes are on disk, so that the file survives a power
      cut. False where it can be computed again.

  Raises:
    OSError: it cannot be written; names the target.
  """
  target = path(target)
  # Hidden, and not with the suffix of `target`: a half-written file must match
  # no pattern such as *.json.
  part = target.with_name(
      f'.{target.name}.{os.getpid()}-{next(_COUNTER)}.part')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    yield part
    if sync:
      with open(part, 'rb') as file:
        os.fsync(file.fileno())
    os.replace(part, target)
  except OSError as error:
    # A failed write (a full disk) does not name the file, or names the
    # temporary one.
    if error.errno and error.filename in (None, str(part), part):
      raise type(error)(error.errno, error.strerror, str(target)) from error
    raise
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes, sync: bool = True) -> None:
  """Writes a file whole or not at all; see `replacing`."""
  with replacing(target, sync) as part:
    part.write_bytes(data)


def write_text(target: Path, text: str, sync: bool = True) -> None:
  """Writes a UTF-8 file whole or not at all; see `replacing`."""
  write_bytes(target, text.encode('utf-8'), sync)


def write_json(target: Path, tree: Any) -> None:
  """Writes JSON whole or not at all; NaN and infinity become null."""
  write_text(target, json.dumps(_finite(tree), indent=1, sort_keys=True,
                                allow_nan=False) + '\n')


def _finite(x: Any) -> Any:
  """Returns a tree as JSON: no NaN, no infinity, no numpy scalars."""
  if isinstance(x, dict):
    return {k: _finite(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [_finite(v) for v in x]
  if hasattr(x, 'item'):  # A scalar of numpy or jax.
    x = x.item()
  if isinstance(x, float) and not math.isfinite(x):
    return None
  return x


def json_line(row: dict[str, Any]) -> str:
  """Returns one line of JSON.

  Raises:
    ValueError: NaN or infinity.
  """
  return json.dumps(row, sort_keys=True, allow_nan=False) + '\n'


def read_json(source: Path) -> Any:
  """Returns the tree of a JSON file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is not JSON; names it.
  """
  try:
    return json.loads(path(source).read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{source}: not a JSON file ({error})') from None


def read_lines(source: Path) -> list[Any]:
  """Returns the rows of a file of JSON lines, up to the first damaged one.

  A process that was killed leaves half a line at the end.
  """
  rows = []
  for text in path(source).read_text(encoding='utf-8').splitlines():
    try:
      rows.append(json.loads(text))
    except ValueError:
      break
  return rows


def digest(tree: Any) -> str:
  """Returns a digest of a JSON tree: 12 hex digits."""
  # A canonical text: trees that are equal have equal digests. 48 bits: among a
  # million runs, two share one with a probability of .002.
  text = json.dumps(tree, sort_keys=True, separators=(',', ':'),
                    allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256(source: Path) -> str:
  """Returns the sha256 of a file's bytes."""
  with open(source, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def walk(folder: Path) -> list[pathlib.Path]:
  """Returns every file under a folder, at any depth, sorted."""
  return sorted(p for p in path(folder).rglob('*') if p.is_file())


def lock(file: IO[Any]) -> None:
  """Locks an open file for this process.

  The kernel releases the lock when the file is closed or the process ends,
  however it ends.

  Raises:
    BlockingIOError: another process has the lock.
    OSError: the file system has no locks, such as a mounted bucket.
  """
  fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def cache_folder(kind: str) -> pathlib.Path:
  """Returns the folder of this user's cache for one kind of content.

  It is ~/.cache/audiorank/<kind>; the environment variable AUDIORANK_CACHE
  replaces ~/.cache/audiorank. Everything in it may be deleted at any time.
  """
  root = os.environ.get('AUDIORANK_CACHE') or '~/.cache/audiorank'
  return path(root, 'AUDIORANK_CACHE') / kind


def read_cached(source: Path, read: Callable[[pathlib.Path], Any]) -> Any:
  """Returns the content of a cache file, or None if missing or damaged.

  Args:
    source: the file, named by a digest of what its content depends on.
    read: called with the path, returns the content; any error counts as damage.
  """
  source = path(source)
  if not source.is_file():
    return None
  try:
    return read(source)
  # Readers of zip files, JSON and arrays each raise their own errors.
  except Exception as error:
    logging.warning('%s: damaged (%s); computing it again', source, error)
    return None


def write_cached(target: Path, write: Callable[[pathlib.Path], Any]) -> None:
  """Writes a cache file whole; only warns if that fails.

  Args:
    target: the file.
    write: called with the path to write to.
  """
  try:
    # No sync, which is slow: after a power cut the content is computed again.
    with replacing(target, sync=False) as part:
      write(part)
  except OSError as error:
    logging.warning('%s: not cached (%s)', target, error.strerror or error)
