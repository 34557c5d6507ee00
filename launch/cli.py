"""What every command shares: one line for a user's mistake, no traceback."""

import importlib.util
import os
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

CACHE = pathlib.Path('~/.cache/audiorank/compiled').expanduser()


def run(main):
  """Runs main(argv); a mistake is one line on standard error and exit 1.

  AUDIORANK_TRACEBACK=1 shows where it came from.
  """
  from audiorank import lease

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    try:
      return main(argv)
    except KeyboardInterrupt:
      print('stopped; the same command goes on', file=sys.stderr)
      sys.exit(130)
    except (ValueError, OSError, lease.Held) as error:
      if os.environ.get('AUDIORANK_TRACEBACK'):
        raise
      fail(error)

  def parse(argv):
    try:
      left = flags.FLAGS(argv)
    except flags.Error as error:
      fail(f'{error} (see --help)')
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
      fail(error)
    if len(left) > 1:
      fail(f'unexpected argument {left[1]!r} (see --help)')
    return left

  app.run(guarded, flags_parser=parse)


def fail(error):
  """Prints an error as one line and exits 1."""
  text = str(error).strip()
  if isinstance(error, (KeyError, AttributeError)):
    # ml_collections gives the repr of its message.
    text = text.strip('"\'').replace('\\n', '\n').replace("\\'", "'")
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  print(f'error: {". ".join(lines[:2]) or repr(error)}', file=sys.stderr)
  sys.exit(1)


def overrides(flag):
  """Returns {field: value} of --config.field=value on the command line."""
  return config_flags.get_override_values(flags.FLAGS[flag])


def config_module(flag):
  """Imports the file that --config names, for its points()."""
  path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS[flag]))
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def compile_cache():
  """Turns on the compilation cache that all runs of this user share.

  AUDIORANK_CACHE moves it; deleting the folder is safe.
  """
  import jax
  folder = os.environ.get('AUDIORANK_CACHE', str(CACHE))
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
