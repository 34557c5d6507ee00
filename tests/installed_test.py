"""The package as a wheel has it: one top-level name, one command."""

import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """(folder, setup.py's arguments): the files where a wheel has them."""
  setuptools = pytest.importorskip('setuptools')
  target, about = tmp_path_factory.mktemp('installed'), {}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    patch.setattr(setuptools, 'setup', about.update)
    runpy.run_path('setup.py')
  for package in about['packages']:
    folder = target.joinpath(*package.split('.'))
    folder.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / about['package_dir'][package]).glob('*.py'):
      shutil.copy(file, folder)
  return target, about


def test_a_wheel_adds_one_top_level_package(installed):
  target, about = installed
  assert [p.name for p in target.iterdir()] == ['audiorank']
  assert about['entry_points'] == {'console_scripts': [
      'audiorank = audiorank._commands.__main__:main']}
  sources = {path.relative_to(ROOT) for folder in ('audiorank', 'configs',
                                                   'launch')
             for path in (ROOT / folder).rglob('*.py')}
  assert len(list(target.rglob('*.py'))) == len(sources)


def run(target, folder, *words):
  return subprocess.run(
      [sys.executable, '-m', 'audiorank._commands', *words], cwd=folder,
      env={**os.environ, 'PYTHONPATH': str(target), 'JAX_PLATFORMS': 'cpu'},
      capture_output=True, text=True, timeout=300)


def test_its_command_works_from_any_folder(installed, tmp_path):
  target, _ = installed
  # A folder of that name in the user's own is no matter.
  (tmp_path / 'launch').mkdir()
  (tmp_path / 'launch' / '__init__.py').write_text('raise SystemExit("theirs")')
  done = run(target, tmp_path, 'sweep', 'plan', '--config=minute')
  assert done.returncode == 0, done.stderr
  assert '4 points' in done.stdout
  wrong = run(target, tmp_path, 'swep')
  assert wrong.returncode == 1
  assert wrong.stderr.endswith('Did you mean sweep?\n')
  assert 'evaluate' in run(target, tmp_path).stdout


def test_the_library_imports_no_command(installed, tmp_path):
  target, _ = installed
  script = ('import audiorank, sys; audiorank.rankme; audiorank.load; '
            'assert not {"launch", "configs", "audiorank._commands"} '
            '& set(sys.modules), sys.modules; print(audiorank.__file__)')
  done = subprocess.run(
      [sys.executable, '-P', '-c', script], cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': str(target), 'JAX_PLATFORMS': 'cpu'},
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(target))


def test_help_of_a_command_has_its_text_and_flags(installed, tmp_path):
  target, _ = installed
  shown = run(target, tmp_path, 'forecast', '--help').stdout
  assert 'Predicts a larger run' in shown and '--root' in shown
