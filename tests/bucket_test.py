"""Files, runs and sweeps on gs://, against a fake server."""

import contextlib
import dataclasses
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

import audiorank
from audiorank import bucket as bucket_lib
from audiorank import checkpoint
from audiorank import data
from audiorank import embedding_cache
from audiorank import encoders
from audiorank import evaluate
from audiorank import files
from audiorank import prepare
from audiorank import rankme
from audiorank import records
from audiorank import report
from audiorank import train
from audiorank.data import folder as corpus_reader
from audiorank.rankme import files as embedding_files
from audiorank.records import lock as lock_lib
from launch import run_queue
from launch.benches import fake_gcs
from tests import processes
from tests import tiny

SETTINGS = {'opt.lr': 1e-3, 'eval.batch': 12, 'eval.protocol': 'logistic'}
POINTS = f'''"""Two points."""
from tests import tiny

def get_config(point='1e-3'):
  return tiny.config('', **{SETTINGS!r} | {{
      'opt.lr': float(point), 'train.steps': 60, 'checkpoint.save_every': 10}})

def points():
  return ['1e-3', '2e-3']
'''


# --- Objects ---


def test_a_file_is_written_whole_and_its_generation_changes(bucket):
  target = files.path(f'{bucket}/a/one.json')
  assert not target.exists() and files.names(f'{bucket}/a') == set()
  files.write_json(target, {'x': 1})
  first = target.stat()
  files.write_json(target, {'x': 2})
  assert files.read_json(target) == {'x': 2}
  assert target.stat().st_mtime_ns != first.st_mtime_ns
  assert files.names(f'{bucket}/a') == {'one.json'}
  assert files.walk(bucket) == [target]
  with pytest.raises(RuntimeError), files.replacing(target) as part:
    part.write_text('half')
    raise RuntimeError
  assert files.read_json(target) == {'x': 2}
  files.move(f'{bucket}/a', f'{bucket}/b')
  files.remove(f'{bucket}/c')
  assert files.walk(bucket) == [files.path(f'{bucket}/b/one.json')]
  files.remove(bucket)
  assert files.walk(bucket) == []


def test_two_that_change_a_file_both_do(bucket):
  target, calls = f'{bucket}/x.json', []

  def add(tree):
    calls.append(tree)
    if len(calls) == 1:  # Another process is faster.
      files.write_json(target, {'theirs': 1})
    return {**(tree or {}), 'ours': 1}

  assert files.update_json(target, add) == {'theirs': 1, 'ours': 1}
  assert files.read_json(target) == {'theirs': 1, 'ours': 1}


def test_rows_are_held_back_and_stored_on_demand(bucket):
  lines = files.Lines(f'{bucket}/rows')
  for i in range(3):
    lines.add(files.json_line({'step': i}))
  assert not files.path(f'{bucket}/rows').exists()
  lines.store()
  assert len(files.path(f'{bucket}/rows').read_text().splitlines()) == 3
  again = files.Lines(f'{bucket}/rows')
  again.add(files.json_line({'step': 3}))
  again.store()
  assert files.read_lines(f'{bucket}/rows') == [
      {'step': i} for i in range(4)]


@pytest.mark.parametrize('name', ['gs://nobody/x', 'gs://nobody/a/b.json'])
def test_a_bucket_that_is_not_there_is_one_line(bucket_server, name):
  with pytest.raises(FileNotFoundError, match='no such bucket'):
    files.write_text(name, 'x')
  with pytest.raises(FileNotFoundError, match='no such object'):
    files.read_json(name)


def test_folders_are_sent_and_fetched_whole(bucket, tmp_path):
  (tmp_path / 'in/sub').mkdir(parents=True)
  (tmp_path / 'in/a').write_bytes(b'a' * 2**21)
  (tmp_path / 'in/sub/b').write_text('b')
  (tmp_path / 'in/.lock').write_text('')
  files.send(tmp_path / 'in', bucket, last='a')
  files.fetch(bucket, tmp_path / 'out')
  assert (tmp_path / 'out/a').read_bytes() == b'a' * 2**21
  assert (tmp_path / 'out/sub/b').read_text() == 'b'
  assert not (tmp_path / 'out/.lock').exists()


# --- Locks ---


def test_a_run_on_a_bucket_has_one_owner(bucket):
  lock = lock_lib.Lock(bucket)
  assert lock_lib.read(bucket)['pid'] == os.getpid()
  assert lock_lib.alive(bucket)
  with pytest.raises(lock_lib.LockHeld, match=f'process {os.getpid()}'):
    lock_lib.Lock(bucket)
  lock.release()
  assert lock_lib.read(bucket) == {} and not lock_lib.alive(bucket)
  lock_lib.Lock(bucket).release()


HOLDER = '''
import sys, time
from audiorank import files
from audiorank.records import lock
holder = lock.Lock(sys.argv[1])
holder.report('training', 7, 9, force=True)
print('ready', flush=True)
for i in range(600):
  time.sleep(.05)
  files.write_text(sys.argv[1] + '/seen', str(i))
'''


@contextlib.contextmanager
def holder(folder, seconds):
  """Yields a process that has a run's lock and writes beside it."""
  with subprocess.Popen(
      [sys.executable, '-c', HOLDER, folder], stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, cwd=processes.ROOT,
      env={**processes.environment('/tmp'),
           'AUDIORANK_LEASE_SECONDS': str(seconds)}) as process:
    try:
      assert process.stdout.readline() == 'ready\n', process.stderr.read()
      yield process
    finally:
      process.kill()


def test_who_loses_a_run_stops_with_42_and_writes_no_more(
    bucket, monkeypatch):
  monkeypatch.setenv('AUDIORANK_LEASE_SECONDS', '3')
  with holder(bucket, 3) as process:
    process.send_signal(signal.SIGSTOP)  # As a machine that is paused.
    # A live process of this machine: its lease ends by its term alone.
    lock = lock_lib.Lock(bucket, wait=True)
    files.write_text(f'{bucket}/seen', 'ours')
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 42
    assert 'stopping' in process.stderr.read()
  assert files.path(f'{bucket}/seen').read_text() == 'ours'
  assert lock_lib.read(bucket)['pid'] == os.getpid()
  lock.release()


def test_a_killed_owner_of_this_machine_is_replaced_at_once(bucket):
  with holder(bucket, 90) as process:
    process.kill()
    process.wait()
  began = time.monotonic()
  lock = lock_lib.Lock(bucket)
  assert lock.deaths == 1 and time.monotonic() - began < 10
  lock.release()


# --- Corpora and runs ---


@pytest.fixture(scope='module')
def moved(bucket_server, corpus, tasks):
  """URLs of the corpus and the tasks on the bucket."""
  prepare.run(corpus.parent / 'audio', 'gs://bucket/data/corpus', workers=1)
  files.send(tasks, 'gs://bucket/data/tasks')
  return 'gs://bucket/data/corpus', 'gs://bucket/data/tasks'


def test_a_corpus_on_a_bucket_is_the_one_on_the_disk(moved, corpus):
  here, there = data.load(corpus), data.load(moved[0])
  assert here.sha256 == there.sha256
  for row in range(3):
    np.testing.assert_array_equal(*(
        corpus_reader.row_reader(one)(row, 100, 900) for one in (here, there)))
  with pytest.raises(ValueError, match='not begun by prepare'):
    prepare.run(corpus.parent / 'audio', moved[1], workers=1)
  # The same again is done at once.
  prepare.run(corpus.parent / 'audio', moved[0], workers=1)


def test_the_page_of_a_running_sweep_is_written_to_the_bucket(bucket_server):
  root = files.path('gs://bucket/live')
  config = tiny.config('gs://bucket/data/corpus')
  workdir = root / records.run_id(config)
  records.open_run(workdir, config)
  page = report.LivePage(root, 'On a bucket')
  for step, rank in ((0, 9.), (2, 11.)):
    value = {'value': rank, 'low': 8., 'high': 12., 'value_inf': None,
             'siblings': {}}
    records.write(workdir, 'monitor', step, {
        'n': 48, 'rank': value, 'rank_center': value, 'valid_loss': 1.})
    text = page.page({workdir.name: 'started'}, '0/1 runs done', 0., {})
    assert f'[{step},{rank},1.0]' in text
  assert page.show({workdir.name: 'started'}, '0/1 runs done', 0., {})
  assert '0/1 runs done' in page.target.read_text()


def run(root, corpus, tasks):
  """Trains and scores a tiny run below a root; returns its folder."""
  config = tiny.config(corpus, **SETTINGS, **{
      'eval.tasks': str(tasks), 'eval.task_names': ('timbre-v1-full',)})
  config.data.sha256 = data.load(config.data.root).sha256
  workdir = files.path(root) / records.run_id(config)
  records.open_run(workdir, config)
  lock = lock_lib.Lock(workdir)
  config = records.load_config(workdir)
  train.fit([workdir], [config])
  evaluate.run(workdir, config)
  lock.release()
  return workdir


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
  # What is computed must be equal here, not fast.
  jax.config.update('jax_disable_most_optimizations', True)
  yield from tiny.compiled_once(tmp_path_factory.mktemp('programs'))
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def runs(compiled, moved, corpus, tasks, tmp_path_factory):
  """The folders of one run, on a disk and on the bucket."""
  return (run(tmp_path_factory.mktemp('runs'), corpus, tasks),
          run('gs://bucket/runs', *moved))


@pytest.mark.slow
def test_a_run_on_a_bucket_is_the_one_on_a_disk(runs):
  here, there = runs
  assert here.name == there.name
  processes.check_same(here, there)
  assert [row['step'] for row in files.read_lines(there / 'metrics.jsonl')] == [
      row['step'] for row in files.read_lines(here / 'metrics.jsonl')]


@pytest.mark.slow
def test_a_model_is_loaded_from_a_bucket(runs):
  waves = np.random.default_rng(0).standard_normal((2, 16000)) * .1
  here, there = (audiorank.load(run).embed(list(waves)) for run in runs)
  np.testing.assert_array_equal(here, there)


@pytest.mark.slow
def test_no_absolute_path_is_in_a_runs_config(runs, moved, tmp_path):
  here, there = runs
  text = (there / 'config.json').read_text()
  assert 'gs://' not in text and '../data/corpus' in text
  tree = json.loads((here / 'config.json').read_text())
  assert not os.path.isabs(tree['data']['root'])
  config = records.load_config(there)
  assert (config.data.root, config.eval.tasks) == moved
  # A copy of the bucket on a disk runs as it is.
  files.fetch('gs://bucket', tmp_path)
  copy = tmp_path / 'runs' / there.name
  config = records.load_config(copy)
  assert config.data.root == str(tmp_path / 'data/corpus')
  assert data.load(config.data.root).sha256 == config.data.sha256
  processes.check_same(copy, here)
  config = records.load_config(copy, {'data.root': '/elsewhere'})
  assert config.data.root == '/elsewhere'


@pytest.mark.slow
def test_a_run_of_an_older_version_is_taken_as_it_is(runs, tmp_path, corpus):
  folder = tmp_path / runs[0].name
  shutil.copytree(runs[0], folder)
  tree = json.loads((folder / 'config.json').read_text())
  tree['data']['root'] = str(corpus)
  del tree['eval']['sha256']
  files.write_json(folder / 'config.json', tree)
  config = records.load_config(folder)
  assert config.data.root == str(corpus)
  assert evaluate.run(folder, config)


def flip(url, name):
  """Changes a byte of an object."""
  target = files.path(f'{url}/{name}')
  raw = bytearray(target.read_bytes())
  raw[len(raw) // 2] ^= 1
  target.write_bytes(bytes(raw))


@pytest.mark.slow
def test_a_flipped_byte_of_a_checkpoint_is_seen(runs, bucket):
  for path in files.walk(runs[1]):
    files.write_bytes(f'{bucket}/{path.relative_to(runs[1])}',
                      path.read_bytes())
  steps = checkpoint.steps(f'{bucket}/checkpoints')
  assert checkpoint.fsck(bucket) == [(step, '') for step in steps]
  last = max(files.walk(f'{bucket}/checkpoints/{steps[-1]}/params'),
             key=lambda path: path.stat().st_size)
  flip(bucket, last.relative_to(files.path(bucket)))
  assert 'params' in checkpoint.fsck(bucket)[-1][1]
  assert checkpoint.newest(f'{bucket}/checkpoints') == steps[-2]


def test_a_shard_that_is_lost_or_changed_is_an_error(moved, bucket):
  for path in files.walk(moved[0]):
    files.write_bytes(
        f'{bucket}/{path.relative_to(files.path(moved[0]))}',
        path.read_bytes())
  corpus = data.load(bucket)
  shard = corpus.index.shards[int(corpus.index.shard_R[0])]
  files.path(f'{bucket}/shards/{shard}').unlink()
  with pytest.raises(FileNotFoundError, match='no such shard'):
    data.load(bucket)
  with pytest.raises(ValueError, match='0 records'):
    corpus_reader.row_reader(corpus)(0, 0, 100)


# --- What else takes gs:// ---


@pytest.mark.slow
def test_embeddings_tables_caches_and_exports_on_a_bucket(
    runs, bucket, monkeypatch, tmp_path):
  z_ND = np.random.default_rng(0).standard_normal((90, 8)).astype(np.float32)
  np.save(tmp_path / 'z.npy', z_ND)
  files.send(tmp_path, bucket)
  assert embedding_files.file_rank(f'{bucket}/z.npy') == (
      embedding_files.file_rank(tmp_path / 'z.npy'))
  state = rankme.update(rankme.init(8), z_ND)
  rankme.save(state, f'{bucket}/state.npz')
  for a, b in zip(rankme.restore(f'{bucket}/state.npz'), state):
    np.testing.assert_array_equal(a, b)
  files.write_text(f'{bucket}/t.csv', 'x,y\n' + ''.join(
      f'{x},{1 - x ** -.5}\n' for x in range(2, 12)))
  fit = audiorank.fit(f'{bucket}/t.csv', x='x', y='y')
  assert fit.params['b'] == pytest.approx(.5, rel=1e-3)
  model = audiorank.load(runs[1])
  waves = [np.sin(np.arange(8000) * .1).astype(np.float32)]
  model.save_pretrained(f'{bucket}/released')
  np.testing.assert_array_equal(
      audiorank.load(f'{bucket}/released').embed(waves), model.embed(waves))
  monkeypatch.setenv('AUDIORANK_CACHE', f'{bucket}/cache')
  (task,) = {path.parent for path in files.walk('gs://bucket/data/tasks')
             if path.parent.name == 'timbre-v1-full'}
  cache = embedding_cache.default()
  settings = evaluate.protocol(records.load_config(runs[1]))
  first, again = (evaluate.score(
      encoders.ours(runs[1]), task, settings, cache) for _ in range(2))
  assert not first['cached'] and again['cached']
  assert first['result'] == again['result']
  assert embedding_cache.clear(cache) == 1 and not files.names(cache)


# --- A store that fails ---


@pytest.fixture
def faulty(bucket_server, monkeypatch):
  """A list of the status codes that a store answers next; after them it has
  one object of three bytes."""
  codes = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      code = codes.pop(0) if codes else 200
      body = json.dumps({'name': 'x', 'size': '3', 'generation': '5'}).encode()
      self.send_response(code)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as store:
    threading.Thread(target=store.serve_forever).start()
    monkeypatch.setenv('STORAGE_EMULATOR_HOST',
                       f'http://127.0.0.1:{store.server_port}')
    bucket_lib._client_of.cache_clear()
    retry = pytest.importorskip('gcsfs.retry')
    monkeypatch.setattr(retry.random, 'random', lambda: -.99)
    yield codes
    store.shutdown()
  bucket_lib._client_of.cache_clear()


@pytest.mark.parametrize('code', [408, 429, 500, 503])
def test_what_fails_for_a_while_is_tried_again(faulty, code):
  faulty.extend([code, code])
  assert files.path('gs://b1/x').stat().st_size == 3
  assert not faulty


@pytest.mark.parametrize('code, words', [
    (401, 'no permission'), (403, 'no permission.*Storage Object User'),
    (400, 'the store answers')])
def test_what_fails_for_good_is_one_line(faulty, code, words):
  faulty.extend([code] * 9)
  with pytest.raises(OSError, match=f'gs://b1/x: {words}') as caught:
    files.path('gs://b1/x').stat()
  assert '\n' not in str(caught.value)


@pytest.fixture
def outage(bucket_server, monkeypatch):
  """Nobody answers any more; a list of the waits between attempts."""
  waits = []

  async def sleep(seconds):
    waits.append(seconds)
  retry = pytest.importorskip('gcsfs.retry')
  monkeypatch.setattr(retry, 'asyncio', types.SimpleNamespace(sleep=sleep))
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
  bucket_lib._client_of.cache_clear()
  yield waits
  bucket_lib._client_of.cache_clear()


@pytest.mark.parametrize('attempt', [
    lambda path: path.read_bytes(), lambda path: path.write_bytes(b'1'),
    lambda path: path.exists(), files.names, files.stats, files.remove,
    data.load, records.run_folders])
def test_a_lasting_outage_is_one_line_after_bounded_attempts(outage, attempt):
  with pytest.raises(files.StoreError, match='gs://bucket/x') as caught:
    attempt(files.path('gs://bucket/x'))
  assert 'the store cannot be reached' in str(caught.value)
  assert '\n' not in str(caught.value)
  # Five waits, each about twice as long as the one before.
  assert len(outage) == 5 and sum(outage) < 40


def test_a_read_of_a_shard_that_never_answers_is_given_up(corpus, monkeypatch):
  pytest.importorskip('gcsfs')
  from array_record.python import array_record_module

  class Stuck:
    def __init__(self, *_):
      self.num_records = lambda: 10**6

    def read(self, _):
      time.sleep(1)

  monkeypatch.setattr(array_record_module, 'ArrayRecordReader', Stuck)
  monkeypatch.setattr(corpus_reader, 'PATIENCE', .05)
  there = dataclasses.replace(data.load(corpus), root='gs://bucket/corpus')
  with pytest.raises(files.StoreError, match='gs://bucket/corpus/shards/.*: '
                     'no answer from the store in 0 s'):
    corpus_reader.row_reader(there)(0, 0, 9)


@pytest.mark.parametrize('content, words', [
    (None, 'No such file'), ('{', 'not a key'), ('[]', 'not a key')])
def test_credentials_that_are_none_are_one_line(
    monkeypatch, tmp_path, content, words):
  pytest.importorskip('gcsfs')
  key = tmp_path / 'key.json'
  if content is not None:
    key.write_text(content)
  monkeypatch.delenv('STORAGE_EMULATOR_HOST', raising=False)
  monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(key))
  bucket_lib._client_of.cache_clear()
  with pytest.raises(ValueError, match='GOOGLE_APPLICATION_CREDENTIALS .*'
                     f'key.json: {words}'):
    files.path('gs://bucket/x')
  bucket_lib._client_of.cache_clear()


def test_a_private_bucket_without_credentials_is_one_line(faulty):
  # What the store answers to somebody who is nobody.
  faulty.extend([401] * 9)
  with pytest.raises(OSError, match='gcloud auth application-default login'):
    files.path('gs://b1/x').read_bytes()


# --- Commands ---


@pytest.fixture(scope='module')
def server(bucket_server, tmp_path_factory):
  process = processes.Server({
      **processes.environment(tmp_path_factory.mktemp('compiled')),
      'AUDIORANK_LEASE_SECONDS': '6'})
  yield process
  process.close()


@pytest.fixture(scope='module')
def swept(server, moved, corpus, tasks, tmp_path_factory):
  """(flags of a sweep on the bucket, root of the same on a disk)."""
  folder = tmp_path_factory.mktemp('points')
  (folder / 'two.py').write_text(POINTS)

  def words(corpus, tasks):
    return [f'--config={folder}/two.py', f'--config.data.root={corpus}',
            f'--config.eval.tasks={tasks}', '--workers=1']

  done = server.run(folder, 'sweep', *words(corpus, tasks),
                    f'--root={folder}/runs')
  assert done.returncode == 0, done.stderr
  return words(*moved), folder / 'runs'


def check_sweep(root, local):
  """Asserts that a sweep ended in the numbers of one on a disk."""
  names = [path.name for path in records.run_folders(local)]
  assert [path.name for path in records.run_folders(root)] == names
  for name in names:
    assert records.state(f'{root}/{name}') == 'done'
    processes.check_same(files.path(f'{root}/{name}'), local / name)


def test_states_of_runs_are_told_by_one_listing(bucket):
  entry = run_queue.Entry(1., 9, 'g', 'p', 'm')._asdict()
  files.write_json(f'{bucket}/sweep.json', {
      'runs': dict.fromkeys('abcde', entry)})
  for name, marks in (('a', 'LEASE'), ('b', 'LEASE TRAINED'),
                      ('c', 'LEASE TRAINED DONE'), ('d', 'LEASE FAILED')):
    for mark in marks.split():
      files.write_text(f'{bucket}/{name}/{mark}', '{}')
  assert run_queue.Board(bucket).states == {
      'a': 'started', 'b': 'trained', 'c': 'done', 'd': 'failed', 'e': 'new'}


@pytest.mark.slow
def test_a_sweep_by_two_launchers_and_its_report(
    server, swept, bucket, tmp_path):
  words, local = swept
  sweeps = [server.start([tmp_path / f'{i}.txt'] * 2, 'sweep', *words,
                         f'--root={bucket}') for i in range(2)]
  for i, sweep in enumerate(sweeps):
    assert sweep.wait(400) == 0, (tmp_path / f'{i}.txt').read_text()
  check_sweep(bucket, local)
  for path in records.run_folders(bucket):
    steps = [row['step'] for row in files.read_lines(path / 'metrics.jsonl')
             if 'rank' in row]
    assert len(steps) == len(set(steps))  # No run was trained twice.
  for name, *flags in (('report', f'--workdir={bucket}'),
                       ('sweep', 'status', f'--root={bucket}'),
                       ('evaluate', f'--checkpoint={path}',
                        '--corpus=gs://bucket/data/corpus', '--clips=40',
                        '--seconds=1', f'--out={bucket}/evaluations')):
    done = server.run(tmp_path, name, *flags)
    assert done.returncode == 0, done.stderr
  assert records.load(bucket).runs.shape == records.load(local).runs.shape
  assert 'report.html' in files.names(bucket)


@pytest.mark.slow
def test_killed_at_many_moments_a_sweep_ends_in_the_same_numbers(
    server, swept, bucket, tmp_path):
  words, local = swept
  rng, log = np.random.default_rng(0), tmp_path / 'log.txt'
  for i in range(20):
    sweep = server.start([log] * 2, 'sweep', *words, f'--root={bucket}')
    try:
      sweep.wait(rng.uniform(1, 12))
      break
    except subprocess.TimeoutExpired:
      victims = [*processes.descendants(sweep.pid), sweep.pid]
      for pid in (victims if i % 2 else victims[:1]):
        try:
          os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
          pass
      sweep.kill()
      sweep.wait()
      processes.check_nobody_left(bucket, 60)
  done = server.run(tmp_path, 'sweep', *words, f'--root={bucket}')
  assert done.returncode == 0, done.stderr
  check_sweep(bucket, local)


@pytest.mark.slow
def test_a_store_that_is_gone_for_good_ends_commands_and_runs(
    corpus, monkeypatch, tmp_path):
  with fake_gcs.running() as url:
    for name, value in fake_gcs.environment(url).items():
      monkeypatch.setenv(name, value)
    bucket_lib._client_of.cache_clear()
    files.send(corpus.parent / 'audio', 'gs://bucket/audio')
    prepare.run('gs://bucket/audio', 'gs://bucket/corpus', workers=1,
                store='none')
    config = tiny.config('gs://bucket/corpus', **SETTINGS, **{
        'train.steps': 10**6, 'checkpoint.save_every': 10})
    config.data.sha256 = data.load(config.data.root).sha256
    workdirs = []
    for root in (files.path('gs://bucket/runs'), tmp_path):
      workdirs.append(root / records.run_id(config))
      records.open_run(workdirs[-1], config)
    env = {**processes.environment(tmp_path / 'compiled'),
           'AUDIORANK_LEASE_SECONDS': '6'}
    runs = [subprocess.Popen(
        [sys.executable, '-m', 'launch.train', f'--workdir={workdir}',
         '--noscore'],
        env=env, stderr=subprocess.PIPE, text=True) for workdir in workdirs]
    end = time.monotonic() + 200
    while not all(files.names(w / 'checkpoints') for w in workdirs):
      assert time.monotonic() < end and all(r.poll() is None for r in runs)
      time.sleep(.5)
  # Its owner may not write any more, so another machine may go on with it.
  # What only reads from the store has failed, and says why.
  for run, code, words in zip(runs, (42, 1), (
      'could not be renewed', 'the store cannot be reached')):
    _, log = run.communicate(timeout=200)
    assert run.returncode == code, log
    assert words in log.splitlines()[-1] and 'Traceback' not in log
  assert records.state(workdirs[1]) == 'started'  # Not failed.
  done = subprocess.run(
      [sys.executable, '-m', 'launch.prepare', '--audio=gs://bucket/audio',
       f'--out={tmp_path}/corpus'], env=env, capture_output=True, text=True)
  assert done.returncode == 1
  assert 'the store cannot be reached' in done.stderr.splitlines()[-1]
  bucket_lib._client_of.cache_clear()


@pytest.mark.slow
def test_two_processes_are_a_slice_and_their_cache_is_on_the_bucket(
    server, moved, corpus, tasks, bucket, tmp_path):
  config = tiny.config(moved[0], **SETTINGS, **{
      'eval.tasks': moved[1], 'eval.task_names': ('timbre-v1-full',),
      'mesh.data': 2})
  config.data.sha256 = data.load(config.data.root).sha256
  workdir = files.path(f'{bucket}/{records.run_id(config)}')
  records.open_run(workdir, config)
  port = fake_gcs.free_port()
  hosts = [server.start(
      [tmp_path / f'{i}.txt'] * 2, 'train', f'--workdir={workdir}', '--noscore',
      AUDIORANK_DISTRIBUTED=f'localhost:{port},2,{i}',
      AUDIORANK_CACHE=f'{bucket}/cache') for i in range(2)]
  for i, host in enumerate(hosts):
    assert host.wait(300) == 0, (tmp_path / f'{i}.txt').read_text()
  assert records.state(workdir) == 'trained'
  # Another machine scores it; it has one device.
  again = server.run(tmp_path, 'train', f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  assert records.state(workdir) == 'done'
  assert checkpoint.fsck(workdir)[-1] == (6, '')
  assert files.names(f'{bucket}/cache/compiled')
