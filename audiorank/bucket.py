"""Objects of Google Cloud Storage: the part of files.py for gs:// paths.

The transport is gcsfs. It repeats a request, with growing waits, after 408,
429, 5xx and lost connections. Added here: one-line errors; the store's crc32c
checked on every read and write (gcsfs checks md5, which objects that were
uploaded in parts lack, or needs a slow crc32c); preconditions on generations;
and no cache of listings, because other machines write to the bucket as well.
Path is an etils.epath.Path whose methods use these functions.

A generation is the store's number of one version of an object. It changes with
every write; 0 stands for no object.
"""

import asyncio
import base64
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import fnmatch
import functools
import io
import json
import logging
import os
import pathlib
import re
import secrets
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from etils.epath import gpath

from audiorank import files

PARALLEL = 16  # Requests at a time.
ALONE = 50 * 2**20  # Objects of up to so many bytes are sent in one request.
TRIES = 3  # Attempts of a transfer whose checksum is wrong.
# Characters that a pattern of a listing cannot quote.
_SPECIAL = re.compile(r'[\[\]{}*?\\]')

Input = TypeVar('Input')
Output = TypeVar('Output')


class Info(NamedTuple):
  """The properties of an object in a listing."""
  size: int
  generation: int
  crc32c: str  # Base64, as the store writes it.


class Stat(NamedTuple):
  """Part of os.stat_result."""
  st_size: int
  st_mtime_ns: int  # The generation: it changes with every write.


class Path(gpath.PosixGPath):
  """A gs:// path with the methods of pathlib.Path that are used here.

  A bucket has no folders: one exists as long as there are objects below it.
  """

  def exists(self) -> bool:
    return self.is_file() or self.is_dir()

  def is_file(self) -> bool:
    return info(self) is not None

  def is_dir(self) -> bool:
    try:
      # One entry proves that the folder exists.
      names, folders = _page(self, '/', most=1)
    except FileNotFoundError:
      return False
    return bool(names or folders)

  def stat(self) -> Stat:  # type: ignore[override]
    about = info(self)
    if about is None:
      raise FileNotFoundError(f'{self}: no such object')
    return Stat(about.size, about.generation)

  def iterdir(self) -> Iterator['Path']:
    objects, folders = _page(self, '/')
    for name in sorted([*objects, *folders]):
      yield self / name

  def glob(self, pattern: str) -> Iterator['Path']:
    """Yields the matching paths, sorted; with a slash in the pattern, objects
    only."""
    if '/' not in pattern:
      names = [path.name for path in self.iterdir()] if self.is_dir() else []
      yield from (self / n for n in names if fnmatch.fnmatchcase(n, pattern))
      return
    yield from (self / name for name in sorted(listing(self, pattern)))

  def read_bytes(self) -> bytes:
    return read(self)[0]

  def read_text(self, encoding: str = 'utf-8', errors: str = 'strict') -> str:
    return self.read_bytes().decode(encoding, errors)

  def write_bytes(self, data: bytes) -> int:
    write(self, data)
    return len(data)

  def write_text(self, data: str, encoding: str = 'utf-8') -> int:
    return self.write_bytes(data.encode(encoding))

  def open(self, mode: str = 'r', encoding: str = 'utf-8',  # type: ignore
           newline: str | None = None) -> Any:
    """Returns the whole object, opened to be read."""
    if mode == 'rb':
      return io.BytesIO(self.read_bytes())
    if mode == 'r':
      return io.StringIO(self.read_text(encoding), newline)
    raise ValueError(f'{self}: mode {mode!r}: an object is written whole, see '
                     'files.replacing')

  def mkdir(self, mode: int | None = None, parents: bool = False,
            exist_ok: bool = False) -> None:
    """Does nothing; raises FileExistsError as pathlib does."""
    if not exist_ok and self.exists():
      raise FileExistsError(f'{self}: exists')

  def unlink(self, missing_ok: bool = False) -> None:
    try:
      _call('DELETE', 'b/{}/o/{}', self)
    except FileNotFoundError:
      if not missing_ok:
        raise

  def rmtree(self, missing_ok: bool = False) -> None:
    names = listing(self)
    if not names and not missing_ok:
      raise FileNotFoundError(f'{self}: no such folder')
    # Another process may delete the same objects at the same time.
    in_parallel(lambda name: (self / name).unlink(missing_ok=True), names)

  def replace(self, target: Any) -> 'Path':
    """Moves an object or a folder: copies all of it, then deletes it."""
    target = Path(target)
    if self.is_file():
      pairs = [(self, target)]
    else:
      pairs = [(self / name, target / name) for name in listing(self)]
    # All copies before the first deletion: a crash between leaves both.
    in_parallel(lambda pair: _copy(*pair), pairs)
    in_parallel(lambda pair: pair[0].unlink(missing_ok=True), pairs)
    return target

  rename = replace

  def resolve(self, strict: bool = False) -> 'Path':
    """Returns the path without '..'."""
    bucket, key = parts_of_url(self)
    # With a slash in front, '..' cannot climb out of the bucket.
    normal = os.path.normpath('/' + key).lstrip('/')
    return Path(f'gs://{bucket}/{normal}'.rstrip('/'))

  def absolute(self) -> 'Path':
    return self

  def expanduser(self) -> 'Path':
    return self


# --- Requests ---


def parts_of_url(path: files.Path) -> tuple[str, str]:
  """Returns the bucket of a gs:// path, and the name of the object in it."""
  bucket, _, key = os.fspath(path).removeprefix('gs://').partition('/')
  return bucket, key


def check_installed() -> None:
  """Raises ValueError where gcsfs is missing; opens nothing."""
  _client()


def _client() -> Any:
  """Returns gcsfs's client of this process."""
  # Its threads do not outlive a fork.
  return _client_of(os.getpid())


@functools.cache
def _client_of(pid: int) -> Any:
  """Returns the client of a process; sets up orbax's and pandas' own too."""
  del pid
  try:
    import aiohttp
    import fsspec
    from gcsfs import core
  except ImportError:
    raise ValueError("gs:// needs gcsfs: pip install 'audiorank[bucket]'"
                     ) from None
  _check_key()
  # Every error is raised, and becomes one line; gcsfs logs it as well.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  # TensorFlow, where it is installed, would be imported to read objects.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  for protocol in ('gs', 'gcs'):
    # Cached listings would hide what other machines have written.
    fsspec.config.conf.setdefault(protocol, {})['use_listings_cache'] = False
  return core.GCSFileSystem(
      # Not the shared instance, whose settings other code may choose.
      skip_instance_cache=True, use_listings_cache=False,
      # No limit for a whole transfer, but for a connection that says nothing.
      requests_timeout=aiohttp.ClientTimeout(
          total=None, sock_connect=30, sock_read=60))


def _check_key() -> None:
  """Raises ValueError if the key that the user names is none.

  gcsfs would go on without credentials, and be refused for another reason.
  """
  variable = 'GOOGLE_APPLICATION_CREDENTIALS'
  name = os.environ.get(variable)
  # An emulator takes requests without credentials.
  if not name or os.environ.get('STORAGE_EMULATOR_HOST'):
    return
  try:
    tree = json.loads(pathlib.Path(name).read_text('utf-8'))
  except OSError as error:
    raise ValueError(f'{variable} {name}: {error.strerror}') from None
  except ValueError:
    tree = None
  if not isinstance(tree, dict) or 'type' not in tree:
    raise ValueError(f'{variable} {name}: not a key file of Google Cloud')


def _run(path: files.Path, function: str, *args: Any,
         timeout: float | None = None, **kwargs: Any) -> Any:
  """Calls a coroutine function of gcsfs; errors become one line.

  Args:
    path: the object, for the message.
    function: the function's name.
    *args: its arguments.
    timeout: seconds for all attempts together.
    **kwargs: further arguments.

  Raises:
    FileNotFoundError: no such object, or no such bucket.
    files.Changed: the precondition on the generation fails.
    files.StoreError: no permission, no network, or the server fails for good.
  """
  client = _client()
  from fsspec import asyn
  try:
    # gcsfs is asynchronous: its event loop has a thread of its own.
    return asyn.sync(client.loop, getattr(client, function), *args,
                     timeout=timeout, **kwargs)
  except FileNotFoundError:
    raise FileNotFoundError(f'{path}: no such object, or no such bucket'
                            ) from None
  # Status 412, a failed precondition, arrives as FileExistsError.
  except FileExistsError:
    raise files.Changed(os.fspath(path)) from None
  except Exception as error:
    reason = _reason(error)
    if not reason:
      raise
    raise files.StoreError(f'{path}: {reason}') from error


def _reason(error: Exception) -> str:
  """Returns the cause of an error, in one line; '' if it is neither the
  store's nor the network's."""
  import aiohttp
  import fsspec
  from gcsfs import retry
  from google.auth import exceptions as auth
  import requests
  text = ' '.join(str(error).split())[:300] or type(error).__name__
  # Status 403 arrives as an OSError whose text begins with Forbidden.
  if isinstance(error, retry.HttpError) and error.code in (401, '401') or (
      str(error).startswith('Forbidden')):
    return (f'no permission ({text}): expected credentials (gcloud auth '
            'application-default login) with the role Storage Object User on '
            'the bucket')
  if isinstance(error, auth.GoogleAuthError):
    return f'no credentials: {text}'
  if isinstance(error, (fsspec.FSTimeoutError, asyncio.TimeoutError)):
    return 'no answer from the store in time'
  if isinstance(error, (aiohttp.ClientError,
                        requests.exceptions.RequestException)):
    return f'the store cannot be reached: {text}'
  if isinstance(error, (retry.HttpError, retry.ChecksumError)) or (
      text.startswith('Bad Request')):
    return f'the store answers: {text}'
  return ''  # Such as a full local disk.


def _call(method: str, url: str, path: files.Path, **kwargs: Any) -> Any:
  """Returns the answer of the JSON API for an object; see `_run`."""
  bucket, key = parts_of_url(path)
  # As many names as the URL has places for.
  arguments = [bucket, key][:url.count('{}')]
  return _run(path, '_call', method, url, *arguments, **kwargs)


def in_parallel(function: Callable[[Input], Output],
                inputs: Iterable[Input]) -> list[Output]:
  """Returns the function of every input, PARALLEL of them at a time."""
  # Threads are enough: requests wait for the network, not for Python.
  with futures.ThreadPoolExecutor(PARALLEL) as pool:
    return list(pool.map(function, inputs))


class _Body(io.BytesIO):
  """The body of a request; stays open, as it may be sent again."""

  def close(self) -> None:
    pass


# --- Objects ---


def crc32c(data: bytes) -> str:
  """Returns the checksum of bytes as the store writes it."""
  import google_crc32c
  return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def file_crc32c(source: files.Path) -> str:
  """Returns the checksum of a local file as the store writes it.

  Raises:
    ValueError: google_crc32c is not installed.
  """
  try:
    import google_crc32c
  except ImportError:
    raise ValueError(f'{source}: written on a bucket, with checksums that '
                     "need google-crc32c: pip install 'audiorank[bucket]'"
                     ) from None
  checksum = google_crc32c.Checksum()
  with open(source, 'rb') as file:
    # 4 MiB at a time, so that a file of any size takes little memory.
    while data := file.read(2**22):
      checksum.update(data)
  return base64.b64encode(checksum.digest()).decode()


def _info_of(about: dict[str, Any]) -> Info:
  return Info(int(about['size']), int(about['generation']),
              about.get('crc32c', ''))


def info(path: files.Path, timeout: float | None = None) -> Info | None:
  """Returns the Info of an object, or None where there is none."""
  # A bucket itself is no object.
  if not parts_of_url(path)[1]:
    return None
  try:
    return _info_of(_call('GET', 'b/{}/o/{}', path, json_out=True,
                          timeout=timeout))
  except FileNotFoundError:
    return None


def read(path: files.Path, timeout: float | None = None) -> tuple[bytes, int]:
  """Returns an object's bytes and its generation.

  Raises:
    FileNotFoundError: no such object.
    OSError: see `_run`; or what arrives is not what is stored.
  """
  for _ in range(TRIES):
    url = _client().url(os.fspath(path).removeprefix('gs://'))
    headers, data = _run(path, '_call', 'GET', url, timeout=timeout)
    # What is stored compressed arrives decompressed: its checksum is of other
    # bytes.
    whole = headers.get('X-Goog-Stored-Content-Encoding', 'identity')
    match = re.search(r'crc32c=([^,]+)', headers.get('X-Goog-Hash', ''))
    if whole != 'identity' or not match or match[1] == crc32c(data):
      return data, int(headers.get('X-Goog-Generation', 0))
  raise OSError(f'{path}: other bytes arrive than are stored')


def read_part(path: files.Path, begin: int, end: int) -> bytes:
  """Returns the bytes of an object from begin to end - 1."""
  # Unchecked, as the store's checksum is of the whole object.
  return _run(path, '_cat_file', os.fspath(path), start=begin, end=end)


def write(path: files.Path, data: bytes, generation: int | None = None,
          timeout: float | None = None) -> int:
  """Writes an object whole; returns its generation.

  Args:
    path: of the object.
    data: all of it.
    generation: that it replaces, 0 for none; None replaces any.
    timeout: seconds after which it is given up.

  Raises:
    files.Changed: it is of another generation, and not of this data.
    FileNotFoundError: no such bucket.
    OSError: see `_run`.
  """
  bucket, key = parts_of_url(path)
  # Large objects go up in pieces, without a precondition.
  if generation is None and len(data) > ALONE:
    _run(path, '_pipe_file', os.fspath(path), data)
    return _check_stored(path, crc32c(data))
  mark = secrets.token_hex(16)
  # A multipart upload, in one request: the checksum goes with the data, and the
  # store refuses the object if they do not match.
  body = b'\r\n'.join([
      f'--{mark}'.encode(), b'Content-Type: application/json; charset=UTF-8',
      b'', json.dumps({'name': key, 'crc32c': crc32c(data)}).encode(),
      f'--{mark}'.encode(), b'Content-Type: application/octet-stream', b'',
      data, f'--{mark}--'.encode()])
  condition = {}
  if generation is not None:
    condition['ifGenerationMatch'] = str(generation)
  try:
    about = _call(
        'POST', _client().base.replace('/storage', '/upload/storage')
        + 'b/{}/o', path, uploadType='multipart', data=_Body(body),
        json_out=True, timeout=timeout,
        headers={'Content-Type': f'multipart/related; boundary="{mark}"'},
        **condition)
  except files.Changed:
    # gcsfs may have repeated a request that had succeeded: then this very data
    # is there.
    there = info(path, timeout)
    if there and there.generation != generation and (
        there.size, there.crc32c) == (len(data), crc32c(data)):
      return there.generation
    raise
  except FileNotFoundError:
    raise FileNotFoundError(f'gs://{bucket}: no such bucket') from None
  return int(about['generation'])


def upload(source: files.Path, path: files.Path) -> None:
  """Writes a local file as an object.

  Raises:
    FileNotFoundError: no such bucket.
    OSError: see `_run`; or other bytes are stored than were sent.
  """
  if os.path.getsize(source) <= ALONE:
    write(path, pathlib.Path(source).read_bytes())
    return
  # In pieces, so the checksum of the whole is compared afterwards.
  _run(path, '_put_file', os.fspath(source), os.fspath(path))
  _check_stored(path, file_crc32c(source))


def _check_stored(path: files.Path, checksum: str) -> int:
  """Returns the generation of a large object that was just written.

  Raises:
    OSError: its checksum is not that of the data; the object is deleted.
  """
  there = info(path)
  if there is None or there.crc32c != checksum:
    Path(path).unlink(missing_ok=True)
    raise OSError(f'{path}: other bytes are stored than were sent')
  return there.generation


def download(path: files.Path, target: files.Path) -> None:
  """Copies an object into a local file.

  Raises:
    FileNotFoundError: no such object.
    OSError: see `_run`; or other bytes arrive than are stored.
  """
  for _ in range(TRIES):
    there = info(path)
    if there is None:
      raise FileNotFoundError(f'{path}: no such object')
    _run(path, '_get_file', os.fspath(path), os.fspath(target))
    # Size first: it costs nothing.
    if os.path.getsize(target) == there.size and (
        file_crc32c(target) == there.crc32c):
      return
  raise OSError(f'{path}: other bytes arrive than are stored')


def _copy(source: files.Path, target: files.Path) -> None:
  # A copy within the store: no byte passes through this machine.
  _run(source, '_cp_file', os.fspath(source), os.fspath(target))


def listing(folder: files.Path, pattern: str = '') -> dict[str, Info]:
  """Returns {name below the folder: Info} of all objects at any depth.

  Args:
    folder: where; nothing is below one that does not exist.
    pattern: of the names wanted: '*' and '?' stand for what has no slash,
      '{a,b}' for alternatives; '' takes all.
  """
  key = parts_of_url(folder)[1]
  query = {}
  # A server-side pattern saves a listing of everything below.
  if pattern and not _SPECIAL.search(key):
    query['matchGlob'] = f'{key}/{pattern}'.lstrip('/')
  try:
    objects, _ = _page(folder, '', None, **query)
  except FileNotFoundError:
    return {}
  # A server that knows no patterns returns all.
  matches = re.compile(_expression(pattern) if pattern else '.*', re.DOTALL)
  return {name: about for name, about in objects.items()
          if matches.fullmatch(name)}


def entries(folder: files.Path) -> tuple[dict[str, Info], list[str]]:
  """Returns ({name: Info}, folders) of what lies directly in a folder."""
  try:
    return _page(folder, '/')
  except FileNotFoundError:
    return {}, []


def _expression(pattern: str) -> str:
  """Returns a pattern of `listing` as a regular expression."""
  # As in the store's matchGlob, '*' and '?' do not match a slash.
  tokens = {'*': '[^/]*', '?': '[^/]', '{': '(?:', '}': ')', ',': '|'}
  return ''.join(tokens.get(c, re.escape(c)) for c in pattern)


def _page(folder: files.Path, delimiter: str, most: int | None = None,
          **query: str) -> tuple[dict[str, Info], list[str]]:
  """Returns ({name: Info}, folders) below a folder, of all pages.

  Args:
    folder: where.
    delimiter: '/' for what lies directly in it, '' for all below it.
    most: of them that are wanted.
    **query: of the request.
  """
  prefix = parts_of_url(folder)[1]
  prefix = f'{prefix}/' if prefix else ''
  objects: dict[str, Info] = {}
  folders: list[str] = []
  token = None
  while True:
    page = _call(
        'GET', 'b/{}/o', folder, json_out=True, prefix=prefix or None,
        delimiter=delimiter or None, maxResults=most, pageToken=token,
        # Only what is used: a listing of many objects is then much smaller.
        fields='items(name,size,generation,crc32c),prefixes,nextPageToken',
        **query)
    for item in page.get('items', ()):
      name = item['name'].removeprefix(prefix)
      # Tools that imitate folders leave empty objects of their names.
      if name and not name.endswith('/'):
        objects[name] = _info_of(item)
    folders += [p.removeprefix(prefix).rstrip('/')
                for p in page.get('prefixes', ())]
    # A page has at most a thousand objects.
    token = page.get('nextPageToken')
    if not token or most:
      return objects, folders


class Leased:
  """An object as lease.Lease takes it: a lease.Store.

  Args:
    path: of the object.
  """

  def __init__(self, path: files.Path):
    self._path = path

  def read(self, timeout: float | None = None) -> tuple[bytes, int]:
    try:
      return read(self._path, timeout)
    except FileNotFoundError:
      return b'', 0

  def write(self, data: bytes, generation: int,
            timeout: float | None = None) -> int:
    return write(self._path, data, generation, timeout)
