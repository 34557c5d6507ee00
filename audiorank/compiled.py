"""Compiled programs on disk, loaded in place of being traced.

jax's persistent cache keeps what was compiled, but finds it by the lowered
program: every process traces and lowers anew, seconds of Python for each point
of a grid. Here a program is found by what it is made of (its part of the
config, the software, the devices, its arguments' shapes), and is the very
executable that was compiled: not a bit of its results differs.

  <jax_compilation_cache_dir>/programs/<name>-<digest>

Deleting anything there is safe; what is damaged is made again, and what nobody
has loaded for a month is deleted. As with jax's own cache, who can write there
can have anything executed.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import pickle
import platform
import threading
import time

from absl import logging
import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from audiorank import records

# What programs may differ by at equal sources.
_SOFTWARE = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
# Parts of the names of jax's settings that change no program.
_BESIDE = ('cache', 'log', 'dump', 'profil', 'traceback', 'explain',
           'platforms')
_SEAL = hashlib.sha256().digest_size
# jax's cache is switched for the whole process; and of threads that want one
# program only one should compile it.
_one_at_a_time = threading.Lock()
_UNUSED = 30 * 24 * 3600  # Seconds.


def folder():
  """Returns where programs are kept; None where jax keeps none either.

  Nor are they on accelerators, where no loaded program was ever seen to run,
  and where several processes compute as one: each holds a part of the
  executable, and all must come to the same answer on what is there.
  """
  root = jax.config.jax_compilation_cache_dir
  if (not root or not jax.config.jax_enable_compilation_cache
      or '://' in root or jax.default_backend() != 'cpu'
      or jax.process_count() > 1):
    return None
  return pathlib.Path(root) / 'programs'


def _sources():
  """Returns a digest of this package's own code as it lies on disk."""
  found = hashlib.sha256()
  root = pathlib.Path(__file__).parent
  for path in sorted(root.rglob('*.py')):
    found.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return found.hexdigest()


_IMPORTED = _sources()  # The code that this process runs.


def settings():
  """Returns jax's settings as this thread has them, as text by name."""
  return {name: repr(value) for name, value in jax.config.values.items()
          if not any(part in name for part in _BESIDE)}


@functools.cache
def _machine():
  """Returns what names this machine's processor, as far as it says, and how
  many cores the process may use: loops are compiled for that number."""
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else os.cpu_count())
  try:
    said = pathlib.Path('/proc/cpuinfo').read_text().split('\n\n')[0]
  except OSError:
    said = f'model name : {platform.processor()}'
  return [cores, *sorted(
      line for line in said.splitlines() if line.split(':')[0].strip()
      in ('model name', 'flags', 'Features', 'CPU part'))]


@functools.cache
def _software():
  found = {}
  for name in _SOFTWARE:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found


def _surroundings():
  """Returns what a program hangs on beside what it is made of."""
  return {
      'software': _software(), 'sources': _IMPORTED, 'machine': _machine(),
      'settings': settings(),
      'flags': os.environ.get('XLA_FLAGS', ''),
      'devices': [d.id for d in jax.devices()],
      'mesh': str(jax.sharding.get_abstract_mesh())}


def _described(x):
  aval = jax.typeof(x)
  return [list(aval.shape), str(aval.dtype), bool(aval.weak_type),
          str(getattr(x, 'sharding', None))]


def _path(name, made_of, args):
  """Returns the file of a program; None where none is kept."""
  root = folder()
  if root is None or made_of is None:
    return None
  leaves, tree = jax.tree.flatten(args)
  said = {**_surroundings(), 'made_of': made_of, 'tree': str(tree),
          'arguments': [_described(x) for x in leaves]}
  return root / f'{name}-{records.digest(said)}'


def _read(path):
  """Returns what `_write` was given; None where that is not there whole."""
  try:
    sealed = path.read_bytes()
    with contextlib.suppress(OSError):  # Somebody else's folder.
      os.utime(path)
  except FileNotFoundError:
    return None
  except OSError as error:
    logging.warning('%s: not read (%s)', path, error)
    return None
  seal, body = sealed[:_SEAL], sealed[_SEAL:]
  # A damaged executable would not raise: it would run.
  if hashlib.sha256(body).digest() != seal:
    logging.warning('%s: damaged; made again', path)
    return None
  return pickle.loads(body)


def _write(path, value):
  if _sources() != _IMPORTED:
    return  # Edited since: nobody could tell of which code this is.
  body = pickle.dumps(value)
  part = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(hashlib.sha256(body).digest() + body)
    os.replace(part, path)
  except OSError as error:
    logging.warning('%s: not kept (%s)', path, error)
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
  with contextlib.suppress(OSError):
    for old in path.parent.iterdir():
      if old.is_file() and old.stat().st_mtime < time.time() - _UNUSED:
        old.unlink()


def _compiled(lowered):
  """Returns what is compiled here and now, past jax's own cache.

  What came from that loses functions when it is serialised again, and fails
  when it is called. What other threads compile meanwhile is not kept by jax.
  """
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    return lowered.compile()
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()


def shapes(name, made_of, fun, *args):
  """Returns jax.eval_shape(fun, *args), remembered.

  Args:
    name: of the program, for the file's name.
    made_of: JSON material that decides what fun does.
    fun: traced where its answer is not known.
    args: trees of arrays.
  """
  path = _path(f'{name}-shapes', made_of, args)
  known = _read(path) if path else None
  if known is None:
    known = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                         jax.eval_shape(fun, *args))
    if path:
      _write(path, known)
  return known


class Program:
  """A jitted function whose executables are kept, one for each shape of its
  arguments. Arguments that come to lie elsewhere are left to the function."""

  def __init__(self, name, made_of, jitted):
    """
    Args:
      name: of the program, for the file's name.
      made_of: JSON material that decides what the function does; None: it is
        not known, and nothing is kept.
      jitted: traced and compiled where its executable is not kept. Nobody
        else may call it: what it got from jax's cache could not be kept.
    """
    self.name, self.made_of, self.jitted = name, made_of, jitted
    self.loaded = {}

  def __call__(self, *args):
    try:
      return self.ready(*args)(*args)
    except (TypeError, ValueError):
      # An executable wants its arguments where they were; if they are wrong
      # otherwise, this says so.
      return self.jitted(*args)

  def ready(self, *args):
    """Returns what a call with these arguments runs, loaded or compiled."""
    shape = tuple((getattr(x, 'shape', ()), getattr(x, 'dtype', None))
                  for x in jax.tree.leaves(args))
    if shape not in self.loaded:
      with _one_at_a_time:
        if shape not in self.loaded:
          self.loaded[shape] = self._find(args)
    return self.loaded[shape]

  def _find(self, args):
    path = _path(self.name, self.made_of, args)
    if path is None:
      return self.jitted
    kept = _read(path)
    if kept:
      executable, numbered, ids = kept
      try:
        return serialize_executable.deserialize_and_load(
            executable, jax.tree.structure((args, {})),
            jax.tree.structure(numbered), execution_devices=[
                d for i in ids for d in jax.devices() if d.id == i])
      except Exception as error:  # XLA has no one class for what it refuses.
        logging.warning('%s: not loaded (%s); made again', path, error)
    compiled = _compiled(self.jitted.lower(*args))
    try:
      executable, _, out = serialize_executable.serialize(compiled)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as e:
      logging.info('%s: cannot be kept (%s)', self.name, e)
      return self.jitted
    ids = [d.id for d in compiled.runtime_executable().local_devices()]
    _write(path, (executable, jax.tree.unflatten(out, range(out.num_leaves)),
                  ids))
    return compiled
