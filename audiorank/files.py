"""The one way to read and write files of runs, corpora, caches and reports, on
disks and on buckets.

`path` turns a user's text into a path: a pathlib.Path, or for gs:// a
bucket.Path, which has the methods of pathlib.Path that this project uses. Any
other URL is refused, so that no URL is ever taken for a folder. `replacing`
writes a file whole or not at all; all other writers use it. A cache file is
read with `read_cached` and written with `write_cached`: a damaged one is
computed again, and a cache that cannot be written costs time, never a result.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import stat
import tempfile
import time
from typing import Any
from typing import IO

from absl import logging

Path = str | os.PathLike[str]


class LockHeld(Exception):
  """Another live process has the lock; the message says which."""


class StoreError(OSError):
  """A store refuses, fails for good, or cannot be reached.

  Unlike a missing object, this says nothing about the object.
  """


class Changed(Exception):
  """An object has another generation than the one that a write replaces."""


# At least two letters: one letter and a colon is a Windows drive.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):(/+)')
_BUCKET = re.compile(r'gs://[A-Za-z0-9][A-Za-z0-9._-]+(/|$)')
_COUNTER = itertools.count()  # For temporary names: threads never share one.
# The tool that mounts a bucket of each kind, for error messages.
_MOUNTS = {'s3': 'mount-s3', 'az': 'blobfuse2'}
HOLD = 30.  # Seconds between writes of a file of lines on a bucket.
SPACING = 1.  # Seconds between writes of an object: buckets accept no more.
# {leased folder on a bucket: function that ends the process if its lease may
# have been acquired by another}
_guards: dict[str, Callable[[], None]] = {}


def path(name: Path, field: str = '') -> pathlib.Path:
  """Returns a local path ('~' is the user's home), or one on a bucket.

  Args:
    name: the user's text.
    field: the flag or config field that it came from, for the message.

  Raises:
    ValueError: a URL other than gs://BUCKET/..., or one that lost a slash
      (gs:/bucket); says what to do. gs:// without the package gcsfs.
  """
  text = os.fspath(name)
  label = f'{field} {text}'.strip()
  if _BUCKET.match(text):
    return _on_bucket(text)
  match = _SCHEME.match(text)
  # The other schemes in the order of how likely a typing error is.
  if match and match[1].lower() == 'file':
    raise ValueError(f'{label}: expected a path without file://')
  # os.path functions turn gs://bucket into gs:/bucket.
  if match and match[2] == '/':
    raise ValueError(f'{label}: a URL with one slash; expected a local folder, '
                     f'or ./{text} for a folder of that name')
  if match and match[1].lower() == 'gs':
    raise ValueError(f'{label}: expected gs://BUCKET/FOLDER')
  if match:
    tool = _MOUNTS.get(match[1].lower(), 'rclone')
    raise ValueError(f'{label}: expected a local folder or gs://: mount the '
                     f'bucket (such as with {tool}) and give the folder where '
                     'it is mounted')
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError:
    raise ValueError(f'{label}: no home folder of that user (is HOME set?): '
                     'expected a path without ~') from None


def _on_bucket(text: str) -> Any:
  """Returns the bucket.Path of a gs:// URL."""
  # gcsfs takes a second to import: only where there is a bucket.
  from audiorank import bucket
  bucket.check_installed()
  return bucket.Path(text)


def is_on_bucket(name: Path) -> bool:
  """Returns whether a path is a gs:// URL."""
  return os.fspath(name).startswith('gs://')


def on_disk(name: Path, field: str = '') -> pathlib.Path:
  """Returns `path` of something that must be on a disk.

  Raises:
    ValueError: a URL; says what to do.
  """
  target = path(name, field)
  if is_on_bucket(target):
    raise ValueError(f'{field} {name}'.strip() + ': expected a local folder: '
                     'copy it (gcloud storage cp -r), or mount the bucket '
                     '(such as with gcsfuse)')
  return target


def absolute(name: Path, field: str = '') -> str:
  """Returns an absolute path without '..', or a URL, as text.

  Raises:
    ValueError: as `path`.
  """
  target = path(name, field)
  if is_on_bucket(target):
    return os.fspath(target.resolve())
  return os.path.abspath(target)


@contextlib.contextmanager
def replacing(target: Path, sync: bool = True) -> Iterator[pathlib.Path]:
  """Yields a local path to write; the file written there becomes `target`.

  The file appears under its name whole or not at all. Missing parent folders
  are created.

  Args:
    target: the file or object to create or replace.
    sync: wait until the bytes are on disk, so that the file survives a power
      cut. False where it can be computed again.

  Raises:
    OSError: it cannot be written; names the target.
  """
  target = path(target)
  if is_on_bucket(target):
    from audiorank import bucket
    # An object appears only when its upload is complete.
    with tempfile.TemporaryDirectory() as folder:
      part = pathlib.Path(folder) / target.name
      yield part
      check_guards(target)
      bucket.upload(part, target)
    return
  # Hidden, and not with the suffix of `target`: a half-written file must match
  # no pattern such as *.json.
  part = target.with_name(
      f'.{target.name}.{os.getpid()}-{next(_COUNTER)}.part')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    yield part
    # Contents before the name: after a power cut a new name must not lead to an
    # empty file.
    if sync:
      with open(part, 'rb') as file:
        os.fsync(file.fileno())
    # Atomic on POSIX: a reader sees the old file or the new one.
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


def check_writable(target: Path, field: str = '') -> None:
  """Raises OSError if a file cannot be written, before the work for it.

  Nothing is left on the disk.

  Args:
    target: the file; missing parent folders would be created.
    field: the flag that it came from, for the message.
  """
  target = path(target)
  if is_on_bucket(target):
    return  # A request would cost, and its error names the object anyway.
  try:
    if target.is_dir():
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # The nearest folder that exists: the others would be created in it.
    folder = target.parent
    while not folder.exists():
      folder = folder.parent
    # A file without a name: nothing is left, even after a kill.
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise OSError(f'{field} {target}'.strip() + ': cannot be written: '
                  f'{error.strerror or error}') from None


def write_bytes(target: Path, data: bytes, sync: bool = True) -> None:
  """Writes a file whole or not at all; see `replacing`."""
  target = path(target)
  if is_on_bucket(target):
    check_guards(target)
    target.write_bytes(data)
    return
  with replacing(target, sync) as part:
    part.write_bytes(data)


def write_text(target: Path, text: str, sync: bool = True) -> None:
  """Writes a UTF-8 file whole or not at all; see `replacing`."""
  write_bytes(target, text.encode('utf-8'), sync)


def update_json(target: Path, change: Callable[[Any], Any]) -> Any:
  """Changes a JSON file that other processes may change too; returns it.

  Args:
    target: the file or object.
    change: old tree, None if there is no file -> new tree. Called again if
      another process was faster.
  """
  target = path(target)
  if not is_on_bucket(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    # A lock of its own, since the file itself is replaced.
    with open(target.with_name(f'.{target.stem}.lock'), 'a',
              encoding='utf-8') as file:
      # Waits, unlike `lock`: the change of a small file is soon over.
      fcntl.flock(file, fcntl.LOCK_EX)
      tree = change(read_json(target) if target.exists() else None)
      write_json(target, tree)
    return tree
  from audiorank import bucket
  # On a bucket no lock: read, change, and write on condition that nobody else
  # has written since.
  store = bucket.Leased(target)
  # Compare and swap: repeated until no other write comes between.
  while True:
    data, generation = store.read()
    tree = change(parse_json(data, target) if data else None)
    try:
      store.write(json_text(tree).encode(), generation)
      return tree
    except Changed:
      continue


def guard(folder: Path, check: Callable[[], None] | None) -> None:
  """Calls `check` before each write below a folder on a bucket; None ends
  that."""
  if check is None:
    _guards.pop(os.fspath(folder), None)
  else:
    _guards[os.fspath(folder)] = check


def check_guards(target: Path) -> None:
  """Ends the process if another may have the lease of the target's folder."""
  # A copy, as another thread may add or remove a guard meanwhile.
  for folder, check in list(_guards.items()):
    # With the slash: runs/1 is also how runs/10 begins.
    if os.fspath(target).startswith(f'{folder}/'):
      check()


def write_json(target: Path, tree: Any) -> None:
  """Writes JSON whole or not at all; NaN and infinity become null."""
  write_text(target, json_text(tree))


def json_text(tree: Any) -> str:
  """Returns a tree as `write_json` writes it."""
  # Keys in order: equal trees give equal files.
  return json.dumps(_finite(tree), indent=1, sort_keys=True,
                    allow_nan=False) + '\n'


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
  return parse_json(read_regular(source), source)


def read_regular(source: Path) -> bytes:
  """Returns the bytes of a file.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it is a folder, a device or a pipe, on which a read may never end;
      names it.
  """
  source = path(source)
  if not is_on_bucket(source):
    check_regular(source)
  return source.read_bytes()


def check_regular(source: Path) -> None:
  """Raises OSError for a path that exists and is no regular file."""
  # Follows links, so a link to a regular file is one.
  mode = os.stat(source).st_mode
  if not stat.S_ISREG(mode):
    raise OSError(f'{source}: a folder, device or pipe: expected a file')


def one_line(error: object) -> str:
  """Returns the text of another library's error as one short line."""
  # Some libraries put a whole request and its headers into an error.
  text = ' '.join(str(error).split()) or type(error).__name__
  if len(text) > 200:
    return text[:200] + ' ...'
  return text


def parse_json(data: bytes, source: Path) -> Any:
  """Returns the tree of a JSON file's bytes.

  Raises:
    ValueError: they are not JSON; names the file.
  """
  try:
    return json.loads(data.decode('utf-8'))
  # Python's parser recurses once a level, up to a limit.
  except RecursionError:
    raise ValueError(f'{source}: not a JSON file of ours (nested too deeply)'
                     ) from None
  except ValueError as error:
    raise ValueError(f'{source}: not a JSON file ({one_line(error)})'
                     ) from None


def read_lines(source: Path) -> list[Any]:
  """Returns the rows of a file of JSON lines, without damaged ones.

  A process that was killed leaves half a line at the end.
  """
  rows = []
  # Split before decoding: a line cut within a character spoils no other.
  for line in read_regular(source).split(b'\n'):
    with contextlib.suppress(ValueError):
      row = parse_json(line, source)
      if isinstance(row, dict):
        rows.append(row)
  return rows


class Lines:
  """A file that text is appended to.

  On a disk the text is written at once. An object cannot be appended to: on a
  bucket it is rewritten, at most every HOLD seconds, and by `store`.

  Args:
    target: the file; its text stays.
  """

  def __init__(self, target: Path):
    self._target = path(target)
    if is_on_bucket(self._target):
      from audiorank import bucket
      data, _ = bucket.Leased(self._target).read()
      # All of the text: an object is rewritten as a whole.
      self._text, self._stored = data.decode('utf-8'), time.monotonic()
      self._waiting = False
    else:
      self._file = open(self._target, 'a', encoding='utf-8')

  def add(self, text: str) -> None:
    """Appends text."""
    if not is_on_bucket(self._target):
      self._file.write(text)
      # What has reached the kernel survives a kill of this process.
      self._file.flush()
      return
    self._text += text
    self._waiting = True
    if time.monotonic() - self._stored > HOLD:
      self.store()

  def store(self) -> None:
    """Writes the text that is not on the bucket yet."""
    if not is_on_bucket(self._target) or not self._waiting:
      return
    # A store takes one write of an object a second.
    time.sleep(max(0., SPACING - (time.monotonic() - self._stored)))
    write_text(self._target, self._text)
    self._waiting, self._stored = False, time.monotonic()

  def close(self) -> None:
    """Closes the file, without `store`."""
    if not is_on_bucket(self._target):
      self._file.close()


def digest(tree: Any) -> str:
  """Returns a digest of a JSON tree: 12 hex digits."""
  # A canonical text: trees that are equal have equal digests. 48 bits: among a
  # million runs, two share one with a probability of .002.
  text = json.dumps(tree, sort_keys=True, separators=(',', ':'),
                    allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256(source: Path) -> str:
  """Returns the sha256 of a file's bytes."""
  with path(source).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def walk(folder: Path) -> list[pathlib.Path]:
  """Returns every file under a folder, at any depth, sorted."""
  folder = path(folder)
  if is_on_bucket(folder):
    from audiorank import bucket
    return sorted(folder / name for name in bucket.listing(folder))
  return sorted(p for p in folder.rglob('*') if p.is_file())


def stats(folder: Path) -> dict[str, tuple[int, int]]:
  """Returns {name below a folder: (bytes, version)} of all files in it.

  The version is another after each change: the time of the last one, or on a
  bucket the generation.
  """
  folder = path(folder)
  if is_on_bucket(folder):
    from audiorank import bucket
    return {name: (about.size, about.generation)
            for name, about in bucket.listing(folder).items()}
  out = {}

  def add(place, prefix):
    # scandir, because it knows which entries are folders without asking.
    with os.scandir(place) as entries:
      for entry in entries:
        try:
          if entry.is_dir():
            add(entry.path, f'{prefix}{entry.name}/')
            continue
          about = entry.stat()
        except OSError:  # A link to nothing or to itself, a file just deleted.
          continue
        out[prefix + entry.name] = about.st_size, about.st_mtime_ns

  if folder.is_dir():
    add(folder, '')
  return out


def names(folder: Path) -> set[str]:
  """Returns the names of a folder's files and folders; none if it does not
  exist."""
  folder = path(folder)
  if is_on_bucket(folder):
    from audiorank import bucket
    objects, folders = bucket.entries(folder)
    return {*objects, *folders}
  # A folder deleted by another process just now is an empty one.
  try:
    return set(os.listdir(folder))
  except (FileNotFoundError, NotADirectoryError):
    return set()


def mapped(function: Callable[[Any], Any], inputs: Iterable[Any],
           place: Path) -> list[Any]:
  """Returns [function(value) for value in inputs]; in parallel for a bucket.

  Args:
    function: reads or writes files.
    inputs: its arguments.
    place: a path that says whether the files are on a bucket.
  """
  # An object costs a round trip, so many at a time save time.
  if is_on_bucket(place):
    from audiorank import bucket
    return bucket.in_parallel(function, inputs)
  return [function(value) for value in inputs]


def read_many(sources: Iterable[Path]) -> list[bytes]:
  """Returns the bytes of files, all on a disk or all on a bucket."""
  sources = [path(source) for source in sources]
  return mapped(read_regular, sources, next(iter(sources), ''))


def read_part(source: Path, begin: int, end: int) -> bytes:
  """Returns the bytes of a file from begin to end - 1."""
  source = path(source)
  # A range request, as the object may be gigabytes.
  if is_on_bucket(source):
    from audiorank import bucket
    return bucket.read_part(source, begin, end)
  with open(source, 'rb') as file:
    file.seek(begin)
    return file.read(end - begin)


def remove(folder: Path) -> None:
  """Deletes a folder and its contents, if it exists."""
  folder = path(folder)
  if is_on_bucket(folder):
    from audiorank import bucket
    bucket.Path(folder).rmtree(missing_ok=True)
  else:
    shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
  """Moves a file or a folder; the target must not exist."""
  source, target = path(source), path(target)
  if is_on_bucket(source):
    source.replace(target)
  else:
    # Unlike os.replace, also from one file system to another.
    shutil.move(source, target)


@contextlib.contextmanager
def local(source: Path) -> Iterator[pathlib.Path]:
  """Yields a local path of a file: itself, or a temporary copy of an object.

  Raises:
    FileNotFoundError: no such object.
  """
  source = path(source)
  if not is_on_bucket(source):
    yield source
    return
  from audiorank import bucket
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / source.name
    bucket.download(source, copy)
    try:
      yield copy
    except (ValueError, OSError) as error:
      # Messages name the user's path, not the copy.
      error.args = tuple(
          arg.replace(str(copy), str(source)) if isinstance(arg, str) else arg
          for arg in error.args)
      raise


def fetch(folder: Path, target: Path) -> None:
  """Copies a folder on a bucket to a disk, except for files that are there
  already."""
  from audiorank import bucket
  folder, target = path(folder), pathlib.Path(target)

  def get(item):
    name, about = item
    copy = target / name
    # For large files the size must do: their checksum takes long.
    if copy.is_file() and copy.stat().st_size == about.size and (
        about.size > 2**20 or bucket.file_crc32c(copy) == about.crc32c):
      return
    with replacing(copy, sync=False) as part:
      bucket.download(folder / name, part)

  bucket.in_parallel(get, bucket.listing(folder).items())


def send(source: Path, folder: Path, last: str = '') -> None:
  """Copies a local folder to a bucket, except for files that are there.

  Args:
    source: a local folder.
    folder: on a bucket.
    last: name of the file that marks the folder as complete.
  """
  from audiorank import bucket
  source, folder = pathlib.Path(source), path(folder)
  stored = bucket.listing(folder)
  # Half-written files begin with a dot, and so do locks.
  every = [str(p.relative_to(source)) for p in walk(source)
           if not p.name.startswith('.')]

  def put(name):
    there = stored.get(name)
    # By content: a local file has no generation to compare.
    if there is None or there.crc32c != bucket.file_crc32c(source / name):
      bucket.upload(source / name, folder / name)

  bucket.in_parallel(put, [name for name in every if name != last])
  # Last of all: whoever sees this file may rely on all others.
  if last in every:
    put(last)


def lock(file: IO[Any]) -> None:
  """Locks an open file for this process.

  The kernel releases the lock when the file is closed or the process ends,
  however it ends.

  Raises:
    BlockingIOError: another process has the lock.
    OSError: the file system has no locks, such as a mounted bucket.
  """
  # Not lockf: closing any other descriptor of the file in this process would
  # release its lock.
  fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def cache_folder(kind: str) -> pathlib.Path:
  """Returns the folder of this user's cache for one kind of content.

  ~/.cache/audiorank/<kind>; the environment's AUDIORANK_CACHE replaces
  ~/.cache/audiorank, and may be gs://. Without a home folder it is temporary.
  Everything in it may be deleted at any time.
  """
  root = os.environ.get('AUDIORANK_CACHE')
  if not root:
    root = '~/.cache/audiorank'
    if os.path.expanduser(root) == root:  # No HOME, as in some containers.
      return temporary_cache() / kind
  return path(root, 'AUDIORANK_CACHE') / kind


def temporary_cache() -> pathlib.Path:
  """Returns a folder of this machine for the cache of a user."""
  # One folder a user: another user's could not be written.
  user = os.getuid() if hasattr(os, 'getuid') else 0
  return pathlib.Path(tempfile.gettempdir(), f'audiorank-{user}')


def local_cache(kind: str) -> pathlib.Path:
  """Returns `cache_folder` if that is on a disk, else a temporary folder of
  this machine: for files that are opened in place, such as memory maps."""
  folder = cache_folder(kind)
  if is_on_bucket(folder):
    return temporary_cache() / kind
  return folder


def staging(folder: Path) -> pathlib.Path:
  """Returns the local folder in which a folder of a bucket is written first."""
  return local_cache('staging') / digest(absolute(folder))


def beside(folder: Path) -> pathlib.Path:
  """Returns a folder on a disk: itself, or `staging` of one on a bucket."""
  return staging(folder) if is_on_bucket(folder) else path(folder)


def read_cached(source: Path, read: Callable[[pathlib.Path], Any]) -> Any:
  """Returns the content of a cache file, or None if missing or damaged.

  Args:
    source: the file, named by a digest of what its content depends on.
    read: called with a local path; any error it raises counts as damage.
  """
  source = path(source)
  try:
    if not source.is_file():
      return None
    with local(source) as copy:
      return read(copy)
  except Exception as error:  # Of any reader: zip, JSON, arrays.
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
