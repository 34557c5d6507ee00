"""What a worker claims, in which order, and what becomes of its runs."""

import gc
import os
import pathlib
import subprocess
import threading
import time

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import feed
from audiorank import records
from audiorank.data import resident
from audiorank.records import lock as lock_lib
from launch import cli
from launch import grid
from launch import run_queue
from launch import work
from launch.engines import local
from tests import processes
from tests import tiny


class Quiet(work.Report):
  """A status without signals."""
  asked = False

  def __init__(self):
    super().__init__()
    self.calls = []

  def busy(self):
    self.calls.append('busy')

  def idle(self):
    self.calls.append('idle')


def sweep(root, configs):
  """Writes a sweep's folders; returns its Board."""
  root.mkdir(exist_ok=True)
  runs = {records.run_id(c): (c, run_queue.entry(c)) for c in configs}
  for run_id, (config, _) in runs.items():
    records.open_run(root / run_id, config)
  grid.write_index(root, 'A title', 'tiny', runs)
  return run_queue.Board(root, list(runs))


def small(corpus, tasks, **changes):
  return tiny.config(corpus, **{
      'eval.tasks': str(tasks), 'eval.task_names': ('timbre-v1-full',),
      'eval.protocol': 'logistic', 'eval.batch': 12, **changes})


def states(board):
  board.look()
  return sorted(board.states.values())


def done(board, roles=run_queue.ROLES, pack=1, status=None):
  """Lets a worker do what it can; returns its exit code."""
  return work.Worker(board, roles, pack, 1, status or Quiet()).run()


@pytest.fixture(scope='module')
def finished(corpus, tasks, tmp_path_factory):
  """(root, configs) of a sweep done by one worker: a run that diverges among
  three that do not, and an untrained baseline."""
  root = tmp_path_factory.mktemp('finished')
  configs = [small(corpus, tasks, **{'opt.lr': lr, 'opt.warmup': 1,
                                     'train.steps': steps})
             for lr, steps in ((1e-3, 6), (1e30, 6), (2e-3, 6), (3e-3, 6),
                               (1e-3, 0))]
  board = sweep(root, configs)
  status = Quiet()
  assert done(board, status=status) == 0
  # Steps make it busy; it is idle while it scores, and between runs.
  assert set(status.calls) == {'busy', 'idle'} and status.calls[-1] == 'idle'
  return root, configs


def test_a_run_that_diverges_leaves_the_worker_alive(finished):
  root, configs = finished
  board = run_queue.Board(root)
  assert states(board) == ['done'] * 4 + ['failed']
  (bad,) = [r for r, state in board.states.items() if state == 'failed']
  about = records.read_json(root / bad / 'FAILED')
  assert about['last_good_step'] == about['step'] - 1 and about['clips']
  for run_id, state in board.states.items():
    assert not lock_lib.read(root / run_id)
    if state == 'done':
      assert records.read_json(root / run_id / 'TRAINED')['run_id'] == run_id
  at = board.progress()
  assert (at.runs, at.done, at.failed, at.share) == (5, 4, 1, 1.)


def test_a_failed_run_is_tried_again_by_the_next_command_unless_it_diverged(
    tmp_path):
  for name, about in (('lost', {'error': 'no room'}), ('hand', None),
                      ('bad', {'error': 'nan', 'last_good_step': 3})):
    (tmp_path / name).mkdir()
    records.write_json(tmp_path / name / 'FAILED', about)
  assert run_queue.reopen(tmp_path, ['lost', 'hand', 'bad', 'new']) == (2, 1)
  assert records.state(tmp_path / 'bad') == 'failed'
  assert records.state(tmp_path / 'lost') == 'new'


def leaves(workdir):
  return [np.asarray(x) for x in jax.tree.leaves(checkpoint.load(workdir)[1])]


def test_trained_here_and_scored_elsewhere_is_the_same_run(
    finished, corpus, tasks, tmp_path):
  root, configs = finished
  board = sweep(tmp_path, [configs[0], configs[4]])
  assert done(board, roles=['train']) == 0
  assert states(board) == ['trained'] * 2
  assert not list(tmp_path.glob('*/records/hear.*'))
  assert done(run_queue.Board(tmp_path), roles=['score']) == 0
  assert states(board) == ['done'] * 2
  for run_id in board.states:
    for ours, theirs in zip(leaves(tmp_path / run_id), leaves(root / run_id),
                            strict=True):
      np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (
        [r['result'] for r in records.read(folder / run_id)
         if r['kind'].startswith('hear.')] for folder in (tmp_path, root))
    assert ours == theirs and ours


@pytest.mark.slow
def test_packed_runs_are_those_runs(finished, corpus, tasks, tmp_path):
  root, configs = finished
  board = sweep(tmp_path, configs)
  assert done(board, pack=8) == 0
  assert states(board) == ['done'] * 4 + ['failed']
  for config in (configs[0], configs[3], configs[4]):
    run_id = records.run_id(config)
    for ours, theirs in zip(leaves(tmp_path / run_id), leaves(root / run_id),
                            strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_another_task_is_scored_and_nothing_trained(
    finished, corpus, tasks, tmp_path):
  """Scores of tasks that are no longer asked for stay."""
  _, configs = finished
  first = configs[4]
  board = sweep(tmp_path, [first])
  assert done(board) == 0
  second = first.copy_and_resolve_references()
  second.eval.task_names = ('texture-v1-full',)
  board = sweep(tmp_path, [second])
  assert states(board) == ['trained']
  trained = os.stat(tmp_path / records.run_id(first) / 'TRAINED')
  assert done(board) == 0 and states(board) == ['done']
  assert trained == os.stat(tmp_path / records.run_id(first) / 'TRAINED')
  tables = records.collect(tmp_path)
  assert sorted(tables.tasks['task']) == [
      'texture-v1-full', 'timbre-v1-full']


class Stopped(Quiet):
  """Is asked to leave at the first step."""

  def report(self, doing, step=None, steps=None, force=False):
    super().report(doing, step, steps, force)
    self.asked = self.asked or bool(step)


@pytest.mark.parametrize('pack', [
    1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_worker_that_is_asked_to_leave_saves(finished, tmp_path, pack):
  _, configs = finished
  board = sweep(tmp_path, [configs[0], configs[2]])
  assert done(board, pack=pack, status=Stopped()) == cli.AGAIN
  assert states(board)[-1] == 'started' or states(board) == ['started'] * 2
  saved = [run_id for run_id in board.states
           if checkpoint.steps(tmp_path / run_id / 'checkpoints')]
  assert len(saved) == min(pack, 2)
  # Nobody died here.
  assert not any(lock_lib.read(tmp_path / run_id) for run_id in board.states)


def fake(monkeypatch, train_runs):
  """Replaces training and scoring; returns the groups that were trained."""
  groups = []

  def trained(runs, stop, status, scored):
    groups.append([run.workdir.name for run in runs])
    train_runs(runs)
    for run in runs:
      records.write_json(run.workdir / 'TRAINED', {})
    return list(runs)

  def scored(run, asked, status):
    records.write_json(run.workdir / 'DONE', {})
    return True

  monkeypatch.setattr(work, 'train', trained)
  monkeypatch.setattr(work, 'score', scored)
  return groups


@pytest.fixture(scope='module')
def shapes(corpus, tasks):
  """Six runs of one shape and two of another."""
  return [small(corpus, tasks, **{'opt.lr': lr, 'train.batch': batch})
          for batch, number in ((8, 6), (16, 2))
          for lr in np.geomspace(1e-4, 1e-3, number)]


def test_too_many_runs_for_the_memory_are_halved_and_none_is_lost(
    shapes, tmp_path, monkeypatch):
  def limited(runs):
    if len(runs) > 2:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  groups = fake(monkeypatch, limited)
  board = sweep(tmp_path, shapes)
  assert done(board, pack=6) == 0 and states(board) == ['done'] * 8
  assert sorted(map(len, groups)) == [2, 2, 2, 2, 3, 6]


def test_a_run_that_fits_nowhere_fails_and_says_so(
    shapes, tmp_path, monkeypatch):
  def full(runs):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  fake(monkeypatch, full)
  board = sweep(tmp_path, shapes[:1])
  assert done(board) == 0 and states(board) == ['failed']
  error = records.read_json(
      tmp_path / next(iter(board.states)) / 'FAILED')['error']
  assert error.startswith('out of memory: train.batch 8')


def test_a_run_that_does_not_fit_beside_the_corpus_reads_from_disk(
    shapes, tmp_path, monkeypatch):
  """It is tried again without the corpus on the device, then has failed."""
  key = 'a corpus', 'a sharding'
  monkeypatch.setitem(resident._LOADED, key, None)
  monkeypatch.setattr(feed, '_FROM_DISK', [])

  def full(runs):
    if resident._LOADED:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  groups = fake(monkeypatch, full)
  board = sweep(tmp_path, shapes[:1])
  assert done(board) == 0 and states(board) == ['done'] and len(groups) == 2
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not feed.fits(True, 0)


def test_an_error_in_company_is_charged_to_the_run_that_has_it(
    shapes, tmp_path, monkeypatch):
  bad = records.run_id(shapes[1])

  def one_is_bad(runs):
    if bad in [run.workdir.name for run in runs]:
      raise ValueError('its own error')

  groups = fake(monkeypatch, one_is_bad)
  board = sweep(tmp_path, shapes[:4])
  assert done(board, pack=4) == 0
  assert {r for r, s in board.states.items() if s == 'failed'} == {bad}
  assert [len(g) for g in groups] == [4, 1, 1, 1, 1]


def test_a_worker_keeps_to_a_shape_and_others_begin_elsewhere(
    shapes, tmp_path, monkeypatch):
  groups = fake(monkeypatch, lambda runs: None)
  board = sweep(tmp_path, shapes)
  done(board)
  programs = [board.entries[run_id].program for (run_id,) in groups]
  assert len(set(programs[:2])) == len(set(programs[2:])) == 1  # Large first.
  orders = {tuple(run_queue.in_order(board, list(board.states), None, name))
            for name in 'abcd'}
  assert len(orders) > 1
  # Where somebody works on the larger shape, the other comes first.
  board = sweep(tmp_path / 'busy', shapes)
  (first,) = run_queue.claim(board, run_queue.ROLES)
  (second,) = run_queue.claim(board, run_queue.ROLES)
  assert first.entry.program != second.entry.program
  (third,) = run_queue.claim(board, run_queue.ROLES, first.entry)
  assert third.entry.program == first.entry.program
  for run in (first, second, third):
    run.lock.release()


def test_a_second_worker_begins_with_another_model(tmp_path):
  """Else both would compile the same initialisation and evaluation at once."""
  entries = {
      'a': run_queue.Entry(9., 10, 'g1', 'large, one mask', 'large'),
      'b': run_queue.Entry(8., 10, 'g2', 'large, other mask', 'large'),
      'c': run_queue.Entry(1., 10, 'g3', 'small', 'small')}
  records.write_json(tmp_path / 'sweep.json', {
      'runs': {name: e._asdict() for name, e in entries.items()}})
  order = lambda board: run_queue.in_order(board, list('abc'), None, '')
  assert order(run_queue.Board(tmp_path)) == ['a', 'b', 'c']
  first = lock_lib.Lock(tmp_path / 'a')
  assert order(run_queue.Board(tmp_path)) == ['c', 'b', 'a']
  both = lock_lib.Lock(tmp_path / 'c')
  assert order(run_queue.Board(tmp_path)) == ['b', 'a', 'c']
  first.release()
  both.release()


def test_a_group_is_divided_among_the_workers(shapes, tmp_path, monkeypatch):
  groups = fake(monkeypatch, lambda runs: None)
  board = sweep(tmp_path, shapes)
  work.Worker(board, run_queue.ROLES, 16, 4, Quiet()).run()
  assert max(map(len, groups)) == 2


def test_an_open_mesh_takes_the_devices_of_the_slot(shapes):
  """As many of the eight as both batches can be divided over."""
  config = shapes[0]
  for batch, fsdp, data in ((16, 1, 8), (12, 1, 4), (16, 2, 4)):
    tree = records.plain(config)
    tree['train']['batch'] = batch
    tree['mesh'].update(data=-1, fsdp=fsdp)
    run = run_queue.Claim(pathlib.Path('r'), records.frozen(tree), None, None)
    assert work.on_devices(run).config.mesh.data == data
  fixed = run_queue.Claim(pathlib.Path('r'), config, None, None)
  assert work.on_devices(fixed) is fixed


def test_accelerators_pack_what_their_memory_holds_and_a_cpu_nothing(
    shapes, monkeypatch):
  assert work.packed(shapes[0]) == 1

  class Device:
    def __init__(self, limit):
      self.limit = limit

    def memory_stats(self):
      return self.limit and {'bytes_limit': self.limit}

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  need = grid.device_bytes(shapes[0])
  for limit, fit in ((10 * need, 5), (1e12, work.MOST_PACKED), (need, 1),
                     (None, work.PACKED)):
    monkeypatch.setattr(jax, 'local_devices',
                        lambda limit=limit: [Device(limit)] * 2)
    assert work.packed(shapes[0]) == 2 * fit


def test_a_run_on_which_workers_die_is_given_up(shapes, tmp_path):
  board = sweep(tmp_path, shapes[:1])
  run_id = next(iter(board.states))
  for _ in range(run_queue.DEATHS):
    (run,) = run_queue.claim(board, run_queue.ROLES)
    run.lock._claim._file.close()  # As a kill leaves it.
  assert run_queue.claim(board, run_queue.ROLES) == []
  assert records.state(tmp_path / run_id) == 'failed'
  error = records.read_json(tmp_path / run_id / 'FAILED')['error']
  assert error == 'its workers died 5 times without progress'


def test_a_damaged_config_fails_its_run_alone(shapes, tmp_path, monkeypatch):
  fake(monkeypatch, lambda runs: None)
  board = sweep(tmp_path, shapes[:2])
  (tmp_path / records.run_id(shapes[0]) / 'config.json').write_text('{"a": ')
  assert done(board) == 0 and states(board) == ['done', 'failed']


def saved(board, run_id, *steps):
  for step in steps:
    for item in checkpoint.OWN:
      os.makedirs(f'{board.root}/{run_id}/checkpoints/{step}/{item}')


def test_runs_go_on_together_from_a_step_that_all_have(shapes, tmp_path):
  board = sweep(tmp_path, shapes[:6])
  ids = [records.run_id(c) for c in shapes[:6]]
  for run_id, steps in zip(ids, ([2, 4], [2, 4, 6], [4], [], [2], [])):
    saved(board, run_id, *steps)
    lock_lib.Lock(tmp_path / run_id).release()
  companies = []
  while runs := run_queue.claim(board, run_queue.ROLES, size=lambda config: 6):
    companies.append({ids.index(run.workdir.name) for run in runs})
    for run in runs:
      records.write_json(run.workdir / 'DONE', {})
      run.lock.release()
  assert sorted(map(sorted, companies)) == [[0, 1, 2], [3, 5], [4]]


def test_a_look_at_ten_thousand_runs_is_cheap(tmp_path):
  """At most 50 ms of CPU: the least of several, on a machine with others."""
  entry = run_queue.Entry(1., 10, 'g', 'p', 'm')._asdict()
  names = [f'{i:012x}' for i in range(10_000)]
  records.write_json(tmp_path / 'sweep.json',
                     {'runs': dict.fromkeys(names, entry)})
  for i, name in enumerate(names):
    (tmp_path / name).mkdir()
    if i % 2:
      (tmp_path / name / 'DONE').touch()
  board = run_queue.Board(tmp_path)
  times = []
  for _ in range(5):
    began = time.process_time()
    board.look()
    times.append(time.process_time() - began)
  assert states(board).count('done') == 5_000
  assert min(times) < .05, times
  (tmp_path / names[0] / 'LEASE').touch()
  (tmp_path / names[0] / 'DONE').touch()
  assert states(board).count('done') == 5_001


def test_a_sweep_keeps_the_runs_it_had(shapes, tmp_path):
  sweep(tmp_path, shapes[:2])
  sweep(tmp_path, shapes[2:4])
  assert len(records.sweep_folders(tmp_path)) == 4
  assert len(run_queue.Board(tmp_path).states) == 4
  # An older version had a list, and the file names no work.
  index = records.read_json(tmp_path / 'sweep.json')
  records.write_json(tmp_path / 'sweep.json',
                     {**index, 'runs': sorted(index['runs'])})
  board = run_queue.Board(tmp_path)
  assert board.entries[records.run_id(shapes[0])] == run_queue.entry(shapes[0])
  sweep(tmp_path, shapes[4:5])
  assert len(run_queue.Board(tmp_path).states) == 5


def test_there_must_be_a_sweep(tmp_path):
  with pytest.raises(FileNotFoundError, match='expected the --root of a sweep'):
    run_queue.Board(tmp_path)
  for roles in (['trian'], []):
    with pytest.raises(ValueError, match='expected train, score or both'):
      run_queue.check_roles(roles)


def test_a_second_run_of_a_shape_is_neither_traced_nor_compiled(
    shapes, tmp_path, monkeypatch):
  """From its claim to its first step it takes half a CPU-second at most.

  And a run leaves behind no arrays, threads or open files.
  """
  board = sweep(tmp_path, shapes[:4])
  began, spent, open_now = [], [], []

  class Timed(Quiet):
    def report(self, doing, step=None, steps=None, force=False):
      if step == 1 and doing == 'training' and len(spent) < len(began):
        spent.append(time.process_time() - began[-1])

  claim = run_queue.claim

  def timed(*arguments):
    began.append(time.process_time())
    open_now.append((len(jax.live_arrays()), threading.active_count(),
                     len(os.listdir('/proc/self/fd'))))
    return claim(*arguments)

  monkeypatch.setattr(run_queue, 'claim', timed)
  assert done(board, ['train'], status=Timed()) == 0
  assert len(spent) == 4
  # The least of three: other threads of the process count as well.
  assert min(spent[1:]) < .5, spent
  # After the first run: it opens what all of them use.
  assert all(np.less_equal(open_now[-1], open_now[1])), open_now


def test_metrics_of_storage_are_not_read(monkeypatch):
  """What orbax calls at every save leaves no objects behind."""
  import tensorstore
  metrics = pytest.importorskip(
      'orbax.checkpoint._src.serialization.tensorstore_utils')
  # Restored afterwards.
  monkeypatch.setattr(tensorstore, 'experimental_collect_matching_metrics',
                      tensorstore.experimental_collect_matching_metrics)
  work.skip_storage_metrics()
  metrics.print_ts_debug_data('x', [])
  before = len(gc.get_objects())
  for _ in range(20):
    metrics.print_ts_debug_data('x', [])
  # Without it, some 10 lists a call.
  assert len(gc.get_objects()) < before + 20


@pytest.mark.slow
def test_memory_does_not_grow_over_two_hundred_runs(corpus, tasks, tmp_path):
  """Of two shapes, one after the other: less than a tenth within each."""
  sweep(tmp_path / 'runs', [
      small(corpus, tasks, **{'seed': seed, 'train.batch': batch,
                              'train.steps': 2, 'opt.warmup': 1,
                              'monitor.valid_clips': 16,
                              'monitor.num_evals': 2})
      for seed in range(100) for batch in (8, 16)])
  env = processes.environment(tmp_path / 'cache')
  process = subprocess.Popen(
      local.command('worker', f'--root={tmp_path / "runs"}'), env=env,
      stdout=subprocess.DEVNULL)
  sizes = {}
  while process.poll() is None:
    number = len(list((tmp_path / 'runs').glob('*/DONE')))
    sizes[number] = memory_pages(process.pid) or sizes.get(number)
    time.sleep(.2)
  assert process.returncode == 0 and max(sizes) >= 195
  for first, last in ((20, 98), (120, 200)):
    within = [size for number, size in sorted(sizes.items())
              if first <= number <= last]
    assert max(within) < 1.1 * within[0], sizes


def memory_pages(pid):
  """Returns the pages of memory that a process holds; 0 when it is gone."""
  try:
    return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  except OSError:
    return 0
