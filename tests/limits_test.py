"""Limits of a machine: each is one line that names the cause, or costs nothing
but itself."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from audiorank import evaluate
from audiorank import export
from audiorank import files
from audiorank import records
from audiorank import report
from launch import overview
from tests import fuzz_test

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_without_a_home_the_cache_is_temporary(monkeypatch, tmp_path):
  monkeypatch.delenv('AUDIORANK_CACHE', raising=False)
  # What os.path.expanduser returns for a user without a home.
  monkeypatch.setenv('HOME', '~')
  monkeypatch.setattr(files.tempfile, 'gettempdir', lambda: str(tmp_path))
  assert files.cache_folder('plans').parents[1] == tmp_path
  with pytest.raises(ValueError, match='--root ~/x: no home folder'):
    files.path('~/x', '--root')


SCRIPT = '''
import sys
from launch import cli

def main(argv):
  print('a \\u2013 b')
  if argv[1] == 'memory':
    raise MemoryError('Unable to allocate 9. TiB')
  if argv[1] == 'device':
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory\\nallocating')
  raise RuntimeError('a bug')

cli.run(main, words=True)
'''


@pytest.mark.parametrize('word, message', [
    ('memory', 'error: out of memory: Unable to allocate 9. TiB'),
    ('device', 'error: out of memory: RESOURCE_EXHAUSTED: Out of memory '
     'allocating')])
def test_out_of_memory_is_one_line_on_any_terminal(word, message):
  done = subprocess.run(
      [sys.executable, '-c', SCRIPT, word], cwd=ROOT, text=True,
      capture_output=True, check=False,
      env={**os.environ, 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'})
  assert done.stdout == 'a \\u2013 b\n'
  assert done.stderr.splitlines() == [message] and done.returncode == 1


@pytest.fixture
def below_a_file(tmp_path):
  """A path that nobody can write, root included."""
  (tmp_path / 'file').touch()
  return tmp_path / 'file' / 'out'


def test_where_results_go_is_tried_before_the_work(below_a_file, monkeypatch):
  monkeypatch.setattr(records, 'collect', lambda root: pytest.fail('work'))
  for call, name in (
      (lambda: evaluate.check_out(f'{below_a_file}.json'), '--out'),
      (lambda: evaluate.check_out(below_a_file), '--out'),
      (lambda: export.destination(f'{below_a_file}.stablehlo'), '--out'),
      (lambda: export.destination(str(below_a_file)), '--out'),
      (lambda: report.write('sweep', out=below_a_file), str(below_a_file)),
      (lambda: report.write(below_a_file), str(below_a_file))):
    with pytest.raises(OSError, match='cannot be written: Not a dir') as caught:
      call()
    assert name in str(caught.value)


def test_what_is_tried_leaves_nothing(tmp_path):
  files.check_writable(tmp_path / 'a/b/c.json')
  assert not list(tmp_path.iterdir())
  (tmp_path / 'd.json').mkdir()
  with pytest.raises(OSError, match='d.json: cannot be written: Is a dir'):
    evaluate.check_out(tmp_path / 'd.json')


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep')
  fuzz_test.sweep(folder)
  return folder


def test_a_sweep_that_can_only_be_read_is_reported_elsewhere(
    sweep, tmp_path, monkeypatch):
  writes = files.replacing

  def replacing(target, sync=True):
    if str(target).startswith(str(sweep)):
      raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
    return writes(target, sync)

  monkeypatch.setattr(files, 'replacing', replacing)
  # What is drawn does not matter here.
  monkeypatch.setattr(sys.modules['audiorank.report.page'], 'page',
                      lambda root, tables, title, own, price:
                      f'{title} {len(tables.runs)}')
  before = fuzz_test.in_folder(sweep)
  path = report.write(sweep, out=tmp_path / 'mine.html')
  assert path == tmp_path / 'mine.html' and path.read_text() == 'One 3'
  assert report.write(sweep, out=tmp_path / 'folder').name == 'report.html'
  records.publish(sweep, tmp_path / 'tables')
  assert len(records.load(tmp_path / 'tables').runs) == 3
  assert fuzz_test.in_folder(sweep) == before


def test_the_state_of_a_sweep_with_a_damaged_run(sweep, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(sweep, copy)
  folder = records.run_folders(copy)[0]
  (folder / 'config.json').write_text('{"train": 5}')
  text = overview.status(copy)
  assert '1 damaged, 2 done' in text and 'not the config of a run' in text


def test_a_pipe_is_not_waited_for(tmp_path):
  for name in ('records/monitor-00000000.json', 'metrics.jsonl'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
  with fuzz_test.limited(5):
    for call in (lambda: records.read(tmp_path),
                 lambda: records.metric_rows(tmp_path)):
      with pytest.raises(OSError, match='pipe: expected a file'):
        call()


def test_links_to_nothing_and_to_themselves_are_passed_over(tmp_path):
  (tmp_path / 'file').write_bytes(np.zeros(3).tobytes())
  (tmp_path / 'gone').symlink_to('nowhere')
  (tmp_path / 'self').symlink_to('self')
  assert set(files.stats(tmp_path)) == {'file'}
