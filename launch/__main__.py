"""The one command of an installed audiorank, and how workers are started.

  audiorank sweep --config=quickstart --root=runs/quickstart

The first word is a module of this folder; what follows are its own flags. In
a checkout this folder is the package `launch`. A wheel installs it within
audiorank, so that it adds no other top-level package; the names `launch` and
`configs` then exist in the processes of this command alone.
"""

import importlib
import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
COMMANDS = {
    'prepare': 'sound files -> a checked corpus',
    'train': 'trains and scores one run',
    'sweep': 'runs every point of a config and reports; plan, write, status, '
             'retry, next, reproduce',
    'worker': 'claims runs of a sweep until none is left',
    'evaluate': 'scores any encoder on HEAR tasks, and its RankMe',
    'forecast': 'predicts a larger run before it is trained',
    'report': "a sweep's report, or a law through any table",
    'export': 'a model for other libraries',
    'emit': 'a sweep as text for Slurm or Kubernetes',
    'bench': 'speed against named rivals'}
WITH_WORDS = ('bench', 'emit', 'sweep')  # Commands that take words.


def bind(name: str, folder: pathlib.Path) -> None:
  """Lets a package be imported by a name, from a folder."""
  spec = importlib.util.spec_from_file_location(
      # With its folder, or it would be a module without submodules.
      name, folder / '__init__.py', submodule_search_locations=[str(folder)])
  if spec is None or spec.loader is None:
    raise ImportError(f'{folder}: no package')
  module = importlib.util.module_from_spec(spec)
  # Before it runs, as its modules import each other by this name.
  sys.modules[name] = module
  spec.loader.exec_module(module)


def usage() -> str:
  """Returns what there is, a line a command."""
  lines = [f'  {name:10s} {text}' for name, text in COMMANDS.items()]
  return '\n'.join(['audiorank COMMAND [--help] [flags]', '', *lines])


def main() -> None:
  """Runs the command that the first word names."""
  # A checkout: packages lie side by side.
  if HERE.name == 'launch':
    sys.path.insert(0, str(HERE.parent))
    bind('configs', HERE.parent / 'configs')
  else:
    # Installed: the wheel has both below audiorank, so that it adds no other
    # name to the environment.
    bind('configs', HERE.with_name('_configs'))
  bind('launch', HERE)
  from absl import flags

  from launch import cli
  # Without a word: what there is.
  word = (sys.argv[1:] or ['help'])[0]
  if word in ('--help', '-h', 'help'):
    print(usage())
    return
  if word not in COMMANDS:
    cli.fail(f'{word!r}: expected one of {", ".join(COMMANDS)}'
             f'{cli.nearest(word, COMMANDS)}')
  # Messages and --help begin with the command as it was typed.
  sys.argv = [f'audiorank {word}', *sys.argv[2:]]
  module = importlib.import_module(f'launch.{word}')
  # --help shows the text and the flags of what is called the main module.
  sys.modules['__main__'].__doc__ = module.__doc__
  for flag in flags.FLAGS.get_key_flags_for_module(module.__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  cli.run(module.main, words=word in WITH_WORDS)


if __name__ == '__main__':
  main()
