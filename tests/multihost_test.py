"""Several processes are one run: the same numbers, checkpoints either reads."""

import json
import signal
import socket
import time

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import records
from audiorank import train
from tests import processes
from tests import tiny

# Of an evaluation, beside the ranks.
MEASURES = (('lidar', 'value'), ('knn', 'score'))


@pytest.fixture
def config(corpus, tasks):
  return tiny.config(corpus, **{
      'train.steps': 30, 'monitor.first_eval': 4, 'checkpoint.save_every': 10,
      'checkpoint.keep_every': 1000, 'mesh.data': -1, 'eval.tasks': str(tasks),
      'eval.task_names': ('timbre-v1-full',), 'eval.protocol': 'logistic',
      'eval.batch': 12})


def start(server, workdir, count):
  """Starts one run on `count` processes of 4 devices together."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  out = []
  for index in range(count):
    env = {'JAX_NUM_CPU_DEVICES': str(4 // count)}
    if count > 1:
      env['AUDIORANK_DISTRIBUTED'] = f'localhost:{port},{count},{index}'
    out.append(processes.worker(server, workdir, **env))
  return out


def end(workers, timeout=900):
  """Waits for all; returns their exit codes."""
  return [process.wait(timeout) for process in workers]


def trained(workdir):
  """Returns the last step of a run's curve: the lock reports once a second,
  in which a fast machine takes all steps."""
  path = workdir / 'metrics.jsonl'
  rows = records.read_lines(path) if path.exists() else []
  return max((row['step'] for row in rows), default=0)


def final(workdir):
  _, params = checkpoint.load(workdir)
  leaves = [np.asarray(x) for x in jax.tree.leaves(params)]
  ranks = [(r['step'], r['rank']['value'], r['rank_center']['value'],
            *(r[name][key] for name, key in MEASURES if name in r))
           for r in records.read(workdir, 'monitor')]
  return leaves, np.array(ranks)


def close(ours, theirs):
  for a, b in zip(ours[0], theirs[0], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


def test_two_processes_are_one_and_take_over_from_each_other(
    server, config, tmp_path):
  """The one reads clips from disk, the two gather them on their devices."""
  config.monitor.valid_clips = 0
  one, two = tmp_path / 'one', tmp_path / 'two'
  for workdir, in_memory, data in ((one, False, 4), (two, True, -1)):
    config.data.in_memory, config.mesh.data = in_memory, data
    records.open_run(workdir, config)
  train.run(one, records.load_config(one))

  # Two processes; a signal to one of them stops both, saved at one step.
  pair = start(server, two, 2)
  until = time.monotonic() + 900
  while trained(two) < 12:
    assert time.monotonic() < until, 'the two do not train'
    assert all(p.poll() is None for p in pair), processes.output(two)
    time.sleep(.01)
  pair[1].send_signal(signal.SIGTERM)
  assert end(pair) == [42, 42], processes.output(two)
  saved = checkpoint.steps(two / 'checkpoints')[-1]
  assert 12 <= saved < 30 and records.state(two) == 'started'

  # What two wrote, one goes on with.
  assert end(start(server, two, 1)) == [0], processes.output(two)
  close(final(two), final(one))
  rows = [json.loads(line) for line in
          (two / 'metrics.jsonl').read_text().splitlines()]
  assert [r['step'] for r in rows if 'loss' in r] == list(range(2, 31, 2))


@pytest.mark.slow
def test_what_one_wrote_two_go_on_with_and_evaluate(server, config, tmp_path):
  # Views of clips and labels are embedded by all processes together.
  config.monitor.update({'knn_task': 'timbre-v1-full', 'lidar_clips': 12,
                         'lidar_views': 2})
  straight, mixed = tmp_path / 'straight', tmp_path / 'mixed'
  for workdir in (straight, mixed):
    records.open_run(workdir, config)
  assert end(start(server, straight, 1)) == [0], processes.output(straight)
  (alone,) = start(server, mixed, 1)
  until = time.monotonic() + 900
  while trained(mixed) < 12:
    assert time.monotonic() < until and alone.poll() is None, (
        processes.output(mixed))
    time.sleep(.01)
  alone.send_signal(signal.SIGTERM)
  assert end([alone]) == [42]
  assert end(start(server, mixed, 2)) == [0, 0], processes.output(mixed)
  close(final(mixed), final(straight))
  assert final(mixed)[1].shape[1] == 5
  assert records.state(mixed) == 'done'
  (score,) = [r for r in records.read(mixed) if r['kind'].startswith('hear.')]
  (alone,) = [r for r in records.read(straight)
              if r['kind'].startswith('hear.')]
  assert abs(score['result']['score'] - alone['result']['score']) < .1
