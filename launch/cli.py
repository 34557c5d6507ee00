"""Common parts of all commands: flags, and errors of users in one line."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import gc
import importlib.util
import io
import os
import pathlib
import re
import sys
import traceback
from types import ModuleType
from typing import Any
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from audiorank import config as config_lib
from audiorank import files
from audiorank.config import nearest

# Exit codes: run it again; the loss diverged. Others from 1 to 41 are errors
# that would happen again; from 128 on the process was killed.
AGAIN, DIVERGED = 42, 3


def run(main: Callable[[list[str]], None], words: bool = False) -> None:
  """Runs main(argv). An error of the user is printed as one line, with exit 1.

  AUDIORANK_TRACEBACK=1 shows the traceback.

  Args:
    main: the command.
    words: whether it takes words besides its flags.
  """
  # Names may have characters that the terminal cannot show.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  # What the imports have left stays until the end: the collector of garbage
  # need not look at its million objects again and again.
  gc.freeze()
  app.run(functools.partial(_guarded, main),
          flags_parser=functools.partial(_parse, words))


def _guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
  """Runs main; errors that a user can correct are printed as one line."""
  logging.set_verbosity(logging.WARNING)
  logging.use_absl_handler()
  traced = bool(os.environ.get('AUDIORANK_TRACEBACK'))
  if not traced:
    silence_saves()
  try:
    files.cache_folder('')  # Refuses a URL before any work is done.
    main(argv)
  # 130 is the shell's code for SIGINT.
  except KeyboardInterrupt:
    print('stopped; run the same command to resume', file=sys.stderr)
    sys.exit(130)
  except FileNotFoundError as error:
    if traced:
      raise
    # Raised by open(); errors of our own have a whole sentence.
    if error.filename:
      fail(f'{error.filename}: no such file')
    fail(error)
  except (ValueError, OSError, files.LockHeld) as error:
    if traced:
      raise
    fail(error)
  except AttributeError as error:
    # Other AttributeErrors are bugs, for which a traceback is needed.
    if traced or not of_config(error):
      raise
    field = str(error).strip('"')
    fail(f'{field}: no such field in the config: expected those of '
         'configs/base.py')
  except Exception as error:
    if traced or not out_of_memory(error):
      raise
    fail(f'out of memory: {files.one_line(error)}')


def out_of_memory(error: BaseException) -> bool:
  """Returns whether an error means that device or host have no memory left."""
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def _parse(words: bool, argv: list[str]) -> list[str]:
  """Returns the words of a command without its flags."""
  try:
    # Config files are run here, so any error of theirs can come up.
    left = flags.FLAGS(with_config_file(argv))
  except flags.Error as error:
    fail(f'{flag_error(error)} (see --help)')
  except FileNotFoundError as error:
    fail(f'{error.filename}: no such file')
  except (AttributeError, KeyError) as error:
    fail(unknown_field(error, argv))
  except (TypeError, ValueError, OSError) as error:
    fail(error)
  except Exception as error:  # A config file can raise errors of any type.
    if os.environ.get('AUDIORANK_TRACEBACK'):
      raise
    fail(with_line(error))
  if len(left) > 1 and not words:
    fail(f'unexpected argument {left[1]!r} (see --help)')
  return left


def with_config_file(argv: list[str]) -> list[str]:
  """Returns the words of a command as ml_collections reads them.

  --config=NAME becomes the file it names; a list field may be written with
  commas, --config.eval.task_names=pitch,scene, as well as a Python tuple.

  Raises:
    ValueError: there is no such file; names the nearest.
  """
  out: list[str] = []
  # Both forms: --flag=value, and --flag value in two words.
  for word in argv:
    name, equals, value = word.partition('=')
    if name in ('--config', '-config') and equals:
      word = f'--config={config_file(value)}'
    elif out and out[-1] in ('--config', '-config'):
      word = config_file(word)
    elif equals and field_of(name) in config_lib.LISTS:
      word = f'{name}={as_tuple(field_of(name), value)}'
    elif out and field_of(out[-1]) in config_lib.LISTS:
      word = as_tuple(field_of(out[-1]), word)
    out.append(word)
  return out


def field_of(flag: str) -> str:
  """Returns the field of a flag such as --config.opt.lr."""
  return flag.lstrip('-').removeprefix('config.')


def as_tuple(field: str, text: str) -> str:
  """Returns the text of a Python tuple for text with commas."""
  # Already a tuple, as ml_collections reads it.
  if text.startswith('('):
    return text
  return repr(tuple(config_lib.split(field, text)))


def config_file(value: str) -> str:
  """Returns the path of a config: a file, or the name of a shipped one.

  Args:
    value: such as quickstart, base:en128-12 or own/file.py:point.

  Raises:
    ValueError: there is no such file; names the nearest.
  """
  name, colon, point = value.partition(':')
  import configs
  shipped = {path.stem: path for path in
             pathlib.Path(configs.__path__[0]).glob('*.py')
             if path.stem != '__init__'}
  path = pathlib.Path(name)
  if path.is_file():
    return value
  if name in shipped:
    return f'{shipped[name]}{colon}{point}'
  # Files of the same folder first, then the shipped names.
  beside = [str(other) for other in path.parent.glob('*.py')]
  guess = nearest(name, beside) or nearest(path.stem, shipped)
  raise ValueError(f'--config={value}: no such file{guess}')


def of_config(error: AttributeError) -> bool:
  """Returns whether an error is about a field that a config lacks."""
  # A missing field of a config is raised by ml_collections itself; any other
  # place is a bug.
  last = traceback.extract_tb(error.__traceback__)[-1]
  return 'ml_collections' in last.filename


def silence_saves() -> None:
  """Hides the tracebacks of a failed save, except for the error itself.

  Orbax raises the error when the save is waited for. Before that, its threads
  and those of tensorstore print it dozens of times.
  """
  def is_new(record: Any) -> bool:
    return not (record.exc_info and ('orbax' in record.pathname
                                     or record.name == 'asyncio'))

  logging.get_absl_handler().addFilter(is_new)
  hook = sys.unraisablehook

  def unraisable(about: Any) -> None:
    # A write that ended after the event loop of its save.
    closed = str(about.exc_value) == 'Event loop is closed'
    if about.object is not None or not closed:
      hook(about)

  sys.unraisablehook = unraisable


def unknown_field(error: Exception, argv: list[str]) -> str:
  """Returns the message about a config field that does not exist."""
  # The error of ml_collections has only the last part of the name (as a repr,
  # sometimes twice) and a suggestion. The full name is on the command line.
  text = re.findall(r'\w+', str(error.args[0]).replace('\\n', ' '))
  fields = [word.split('=')[0] for word in argv
            if text and text[0] in word.split('=')[0].split('.')]
  guess = ''
  for field in fields:
    # Fields of older versions: say what they are called now.
    old = field_of(field)
    if old in config_lib.RENAMED:
      return f'{field}: no such field: it is now {config_lib.RENAMED[old]}'
  if text[1:4] == ['Did', 'you', 'mean']:
    guess = f' Did you mean {text[4]}?'
  return f'{(fields or text[:1] or [str(error)])[0]}: no such field.{guess}'


def flag_error(error: flags.Error) -> str:
  """Returns what is wrong with a flag, in one line."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  # If a config file raises: the flag and the error, without the traceback.
  if any(line.startswith('Traceback') for line in lines):
    return f'{lines[0].split(": Error")[0]}: {lines[-1]}'
  missing = re.match(r'flag (--\w+)=None: ', lines[0])
  if missing:
    return f'{missing[1]}=...: expected a value'
  return str(error)


def fail(error: object) -> NoReturn:
  """Prints an error as one line and exits 1."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  # Two lines at most: libraries append advice of their own.
  print(f'error: {". ".join(lines[:2]) or repr(error)}', file=sys.stderr)
  sys.exit(1)


def overrides(flag: str) -> dict[str, Any]:
  """Returns {field: value} of --config.field=value on the command line."""
  return config_flags.get_override_values(flags.FLAGS[flag])


def config_module(flag: str) -> ModuleType:
  """Imports the file that --config names, for its points().

  Raises:
    ValueError: no .py file, or one that raises.
  """
  path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS[flag]))
  if path.suffix != '.py' or not path.is_file():
    raise ValueError(f'--{flag}={path}: no such .py file (without a point '
                     'after a colon: all of its points are meant)')
  with of_file():
    return from_file(path.stem, path)


def from_file(name: str, path: pathlib.Path) -> ModuleType:
  """Returns the module in a file, run under a name."""
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ValueError(f'{path}: not a Python file')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def of_file() -> Iterator[None]:
  """Turns any error of the code of a config file into a ValueError."""
  try:
    yield
  except Exception as error:
    raise ValueError(with_line(error)) from error


def with_line(error: Exception) -> str:
  """Returns the text of an error with its file and line."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  return (f'{last.filename}, line {last.lineno}: {type(error).__name__}: '
          f'{error}')


def compile_cache() -> None:
  """Turns on the compilation cache that all runs of this user share.

  AUDIORANK_CACHE moves it; deleting the folder is safe.
  """
  import jax
  jax.config.update('jax_compilation_cache_dir',
                    str(files.cache_folder('compiled')))
  # Also small programs that compile fast: there are many of them.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
