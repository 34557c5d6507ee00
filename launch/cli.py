"""What every command shares: one line for a user's mistake, no traceback."""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import re
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from audiorank import files

# Exit codes: run me again; the loss diverged. Others from 1 to 41 are errors
# that running again would meet again, from 128 on the process was killed.
AGAIN, DIVERGED = 42, 3


def run(main, words=False):
  """Runs main(argv); a mistake is one line on standard error and exit 1.

  AUDIORANK_TRACEBACK=1 shows where it came from.

  Args:
    main: what the command does.
    words: whether it takes words beside its flags.
  """
  from audiorank import lease

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    if not os.environ.get('AUDIORANK_TRACEBACK'):
      quieten()
    try:
      return main(argv)
    except KeyboardInterrupt:
      print('stopped; the same command goes on', file=sys.stderr)
      sys.exit(130)
    except (ValueError, OSError, lease.Held, AttributeError) as error:
      if os.environ.get('AUDIORANK_TRACEBACK') or (
          isinstance(error, AttributeError) and not of_config(error)):
        raise
      if isinstance(error, AttributeError):
        field = str(error).strip('"')
        fail(f'{field}: no such field in the config: expected those of '
             'configs/base.py')
      if isinstance(error, FileNotFoundError) and error.filename:
        fail(f'{error.filename}: no such file')
      fail(error)

  def parse(argv):
    try:
      left = flags.FLAGS(with_config_file(argv))
    except flags.Error as error:
      fail(f'{last_word(error)} (see --help)')
    except FileNotFoundError as error:
      fail(f'{error.filename}: no such file')
    except (AttributeError, KeyError) as error:
      fail(unknown_field(error, argv))
    except (TypeError, ValueError, OSError) as error:
      fail(error)
    except Exception as error:  # Of a config file, which may raise any.
      if os.environ.get('AUDIORANK_TRACEBACK'):
        raise
      fail(raised(error))
    if len(left) > 1 and not words:
      fail(f'unexpected argument {left[1]!r} (see --help)')
    return left

  app.run(guarded, flags_parser=parse)


def with_config_file(argv: list[str]) -> list[str]:
  """Returns the words of a command, --config=NAME as the file it names.

  Raises:
    ValueError: there is no such file; names the nearest.
  """
  return [word if not word.startswith('--config=') else
          f'--config={config_file(word.removeprefix("--config="))}'
          for word in argv]


def config_file(value: str) -> str:
  """Returns the path of a config: a file, or a name of those shipped.

  Args:
    value: such as quickstart, base:en128-12 or own/file.py:point.

  Raises:
    ValueError: there is no such file; names the nearest.
  """
  name, colon, point = value.partition(':')
  spec = importlib.util.find_spec('configs')
  shipped = {path.stem: path for path in
             pathlib.Path(spec.submodule_search_locations[0]).glob('*.py')
             if path.stem != '__init__'}
  if name in shipped and not pathlib.Path(name).exists():
    return f'{shipped[name]}{colon}{point}'
  path = pathlib.Path(name)
  if path.is_file():
    return value
  beside = [str(other) for other in path.parent.glob('*.py')]
  guess = nearest(name, beside) or nearest(path.stem, shipped)
  raise ValueError(f'--config={value}: no such file{guess}')


def of_config(error):
  """Returns whether an AttributeError is of a field that a config lacks."""
  at = traceback.extract_tb(error.__traceback__)[-1]
  return 'ml_collections' in at.filename


def quieten():
  """Keeps tracebacks of a failed save off standard error.

  Orbax raises the error itself where the save is waited for; its threads,
  and those of tensorstore, print it some dozens of times before.
  """
  told_twice = lambda record: record.exc_info and (
      'orbax' in record.pathname or record.name == 'asyncio')
  logging.get_absl_handler().addFilter(lambda r: not told_twice(r))
  before = sys.unraisablehook

  def unraisable(about):
    # A write that ends after the event loop of its save was given up.
    if about.object is not None or str(about.exc_value) != (
        'Event loop is closed'):
      before(about)

  sys.unraisablehook = unraisable


def unknown_field(error, argv):
  """Returns what to say of a config field that does not exist, in full."""
  # ml_collections quotes the last part of the name (as a repr, at times
  # twice), and guesses another.
  said = re.findall(r'\w+', str(error.args[0]).replace('\\n', ' '))
  fields = [a.split('=')[0] for a in argv
            if said and said[0] in a.split('=')[0].split('.')]
  guess = (f' Did you mean {said[4]}?' if said[1:4] == ['Did', 'you', 'mean']
           else '')
  return f'{fields[0] if fields else said[:1]}: no such field.{guess}'


def nearest(word, words):
  """Returns '. Did you mean ...?' of the nearest of some words, or ''."""
  found = difflib.get_close_matches(word, words, 1)
  return f'. Did you mean {found[0]}?' if found else ''


def last_word(error):
  """Returns a flag's error; of a config file that fails, what it said."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  if any(line.startswith('Traceback') for line in lines):
    return f'{lines[0].split(": Error")[0]}: {lines[-1]}'
  return str(error)


def fail(error):
  """Prints an error as one line and exits 1."""
  lines = [line.strip() for line in str(error).strip().splitlines()
           if line.strip()]
  print(f'error: {". ".join(lines[:2]) or repr(error)}', file=sys.stderr)
  sys.exit(1)


def overrides(flag):
  """Returns {field: value} of --config.field=value on the command line."""
  return config_flags.get_override_values(flags.FLAGS[flag])


def config_module(flag):
  """Imports the file that --config names, for its points()."""
  path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS[flag]))
  if path.suffix != '.py' or not path.is_file():
    raise ValueError(f'--{flag}={path}: no such .py file (without a point '
                     'after a colon: all of its points are meant)')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  with of_file():
    spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def of_file():
  """Makes a ValueError of whatever the code of a config file raises."""
  try:
    yield
  except Exception as error:
    raise ValueError(raised(error)) from error


def raised(error):
  """Returns an error with the file and line that it came from."""
  at = traceback.extract_tb(error.__traceback__)[-1]
  return f'{at.filename}, line {at.lineno}: {type(error).__name__}: {error}'


def compile_cache():
  """Turns on the compilation cache that all runs of this user share.

  AUDIORANK_CACHE moves it; deleting the folder is safe.
  """
  import jax
  jax.config.update('jax_compilation_cache_dir',
                    str(files.cache_folder('compiled')))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
