"""Files are written whole or not at all, and no URL is taken for a folder."""

import errno
import json
import os
import threading

import numpy as np
import pytest

from audiorank import files


@pytest.mark.parametrize('name, word', [
    ('gs://', 'gs://BUCKET/FOLDER'), ('s3://bucket/runs', 'mount-s3'),
    ('https://host/corpus', 'rclone'), ('hdfs://a', 'rclone'),
    ('gs:/bucket/runs', 'one slash'), ('s3:/bucket', 'one slash'),
    ('file:///data', 'without file://')])
def test_a_url_is_never_a_folder(name, word, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=word) as error:
    files.path(name, 'data.root')
  assert str(error.value).startswith(f'data.root {name}: ')
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match=word):
    files.write_text(f'{name}/x', '')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['/data/a', 'a:b', './gs:/b', 'c/gs://b', ''])
def test_local_names_are_paths(name):
  assert files.path(name) == files.pathlib.Path(name)


def test_home_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert str(files.path('~/runs')) == '/home/me/runs'
  monkeypatch.setenv('AUDIORANK_CACHE', '~/scratch')
  assert str(files.cache_folder('plans')) == '/home/me/scratch/plans'
  monkeypatch.delenv('AUDIORANK_CACHE')
  assert str(files.cache_folder('plans')) == '/home/me/.cache/audiorank/plans'


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
  target = tmp_path / 'new' / 'a.txt'
  files.write_text(target, 'old')
  with pytest.raises(KeyError), files.replacing(target) as part:
    part.write_text('half')
    raise KeyError
  assert target.read_text() == 'old'
  assert [p.name for p in target.parent.iterdir()] == ['a.txt']


def test_a_full_disk_names_the_file(tmp_path):
  target = tmp_path / 'a.bin'
  with pytest.raises(OSError) as error, files.replacing(target):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert error.value.filename == str(target)
  assert error.value.errno == errno.ENOSPC
  # A parent that is a file: the kind of the error stays.
  target.write_bytes(b'')
  with pytest.raises((NotADirectoryError, FileExistsError)):
    files.write_bytes(target / 'b', b'')


def test_threads_that_write_one_file_do_not_meet(tmp_path):
  target, errors = tmp_path / 'a.json', []

  def write(i):
    try:
      for _ in range(20):
        files.write_json(target, {'writer': i, 'long': 'x' * 10_000})
    except OSError as error:
      errors.append(error)

  threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  assert files.read_json(target)['writer'] in range(4)
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_json_is_strict(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'b': (np.float32(.5), float('nan')),
                          'a': np.int64(3), 'c': [float('inf'), True]})
  text = path.read_text()
  assert json.loads(text) == {'a': 3, 'b': [.5, None], 'c': [None, True]}
  assert text.index('"a"') < text.index('"b"')
  with pytest.raises(ValueError):
    files.json_line({'loss': float('nan')})
  path.write_bytes(b'{"a": 1')
  with pytest.raises(ValueError, match='a.json: not a JSON file'):
    files.read_json(path)
  path.write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='a.json: not a JSON file'):
    files.read_json(path)


def test_a_half_written_last_line_is_left_out(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(files.json_line({'step': 1}) + '{"step": 2, "lo')
  assert files.read_lines(path) == [{'step': 1}]


def test_a_digest_does_not_depend_on_order():
  assert files.digest({'a': 1, 'b': [2]}) == files.digest({'b': [2], 'a': 1})
  assert files.digest({'a': 1}) != files.digest({'a': 2})


def test_of_two_holders_the_second_is_refused(tmp_path):
  with open(tmp_path / 'lock', 'w') as one, open(tmp_path / 'lock', 'w') as two:
    files.lock(one)
    with pytest.raises(BlockingIOError):
      files.lock(two)
    one.close()
    files.lock(two)


def test_a_cache_costs_time_and_never_a_result(tmp_path, caplog):
  path = tmp_path / 'cache' / 'a.json'
  assert files.read_cached(path, files.read_json) is None
  files.write_cached(path, lambda part: part.write_text('[1]'))
  assert files.read_cached(path, files.read_json) == [1]
  path.write_text('[1')
  assert files.read_cached(path, files.read_json) is None
  assert 'computing it again' in caplog.text
  # Where nothing can be written, that is a warning.
  files.write_cached(path / 'below', lambda part: part.write_text(''))
  assert 'not cached' in caplog.text


def test_walk_finds_files_at_any_depth(tmp_path):
  for name in ('b', 'a/c', 'a/d/e'):
    files.write_text(tmp_path / name, name)
  assert files.walk(tmp_path) == [tmp_path / n for n in ('a/c', 'a/d/e', 'b')]
  assert files.sha256(tmp_path / 'b') == (
      '3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d')


def entrances():
  """Returns {name: function of a path} of what a user gives paths to."""
  import audiorank
  from audiorank import checkpoint
  from audiorank import data
  from audiorank import prepare
  from audiorank import records
  from audiorank import report
  from audiorank.hear import tasks
  return {
      'load': audiorank.load, 'fit': audiorank.fit,
      'checkpoint': checkpoint.load, 'corpus': data.load,
      'sounds': lambda p: prepare.run(p, 'corpus', workers=1),
      'prepared': lambda p: prepare.write(p, [], {}), 'tasks': tasks.find,
      'task': tasks.load, 'tables': records.tables,
      'collect': records.collect, 'report': report.write}


@pytest.mark.parametrize('name', ['s3://bucket/x', 'gs:/x'])
def test_what_takes_a_path_refuses_a_url(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for entrance, function in entrances().items():
    with pytest.raises(ValueError, match='expected a local') as error:
      function(name)
    assert name in str(error.value), entrance
  assert not list(tmp_path.iterdir())
