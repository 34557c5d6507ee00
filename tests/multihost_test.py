"""Several processes are one run: the same numbers, checkpoints either reads."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import records
from audiorank import synth
from tests import processes
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


def config_of(corpus, tasks):
  return tiny.config(corpus, **{
      'train.steps': 30, 'monitor.first_eval': 4, 'checkpoint.save_every': 10,
      'checkpoint.keep_every': 1000, 'mesh.data': -1, 'eval.tasks': str(tasks),
      'eval.protocol': 'logistic', 'eval.batch': 12})


@pytest.fixture(scope='module')
def config(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tasks')
  synth.write_tasks(folder, 0, clips_per_task=(24, 12, 12), names=['timbre'],
                    workers=1, progress=False)
  return config_of(corpus, folder / 'tasks')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('compiled')


def start(workdir, cache, count):
  """Starts one run on `count` processes of 8 devices together."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  out = []
  for index in range(count):
    env = {**processes.environment(cache),
           'JAX_NUM_CPU_DEVICES': str(8 // count)}
    if count > 1:
      env['AUDIORANK_DISTRIBUTED'] = f'localhost:{port},{count},{index}'
    out.append(subprocess.Popen(
        [sys.executable, '-m', 'launch.train', f'--workdir={workdir}'],
        cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True))
  return out


def end(started, timeout=900):
  """Waits for all; returns their exit codes and what they said."""
  said = [p.communicate(timeout=timeout)[1] for p in started]
  return [p.returncode for p in started], '\n'.join(said)


def trained(workdir):
  """Returns the last step of a run's curve: the lock reports once a second,
  in which a fast machine takes all steps."""
  path = workdir / 'metrics.jsonl'
  rows = records.read_lines(path) if path.exists() else []
  return max((row['step'] for row in rows), default=0)


def final(workdir):
  _, params = checkpoint.load(workdir)
  leaves = [np.asarray(x) for x in jax.tree.leaves(params)]
  ranks = [(r['step'], r['rank']['value'], r['rank_center']['value'])
           for r in records.read(workdir, 'monitor')]
  return leaves, np.array(ranks)


def close(ours, theirs):
  for a, b in zip(ours[0], theirs[0], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


def test_two_processes_are_one_and_take_over_from_each_other(
    config, cache, tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  for workdir in (one, two):
    records.open_run(workdir, config)
  codes, said = end(start(one, cache, 1))
  assert codes == [0], said

  # Two processes; a signal to one of them stops both, saved at one step.
  pair = start(two, cache, 2)
  until = time.monotonic() + 900
  while trained(two) < 12:
    assert time.monotonic() < until, 'the two do not train'
    assert all(p.poll() is None for p in pair), end(pair)[1]
    time.sleep(.01)
  pair[1].send_signal(signal.SIGTERM)
  codes, said = end(pair)
  assert codes == [42, 42], said
  saved = checkpoint.steps(two / 'checkpoints')[-1]
  assert 12 <= saved < 30 and records.state(two) == 'started'

  # What two wrote, one goes on with.
  codes, said = end(start(two, cache, 1))
  assert codes == [0], said
  close(final(two), final(one))
  rows = [json.loads(line) for line in
          (two / 'metrics.jsonl').read_text().splitlines()]
  assert [r['step'] for r in rows if 'loss' in r] == list(range(2, 31, 2))


@pytest.mark.slow
def test_what_one_wrote_two_go_on_with_and_evaluate(config, cache, tmp_path):
  straight, mixed = tmp_path / 'straight', tmp_path / 'mixed'
  for workdir in (straight, mixed):
    records.open_run(workdir, config)
  assert end(start(straight, cache, 1))[0] == [0]
  (alone,) = start(mixed, cache, 1)
  until = time.monotonic() + 900
  while trained(mixed) < 12:
    assert time.monotonic() < until and alone.poll() is None, end([alone])[1]
    time.sleep(.01)
  alone.send_signal(signal.SIGTERM)
  assert end([alone])[0] == [42]
  codes, said = end(start(mixed, cache, 2))
  assert codes == [0, 0], said
  close(final(mixed), final(straight))
  assert records.state(mixed) == 'done'
  (score,) = [r for r in records.read(mixed) if r['kind'].startswith('hear.')]
  (alone,) = [r for r in records.read(straight)
              if r['kind'].startswith('hear.')]
  assert abs(score['result']['score'] - alone['result']['score']) < .1
