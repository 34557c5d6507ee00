"""Runs and sweeps as processes, and how they are watched from outside."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from audiorank import checkpoint
from audiorank import lease
from audiorank import records

ROOT = pathlib.Path(__file__).parents[1]


def environment(cache):
  """Returns the environment of a command: CPU, one compilation cache."""
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
          'RAY_USAGE_STATS_ENABLED': '0',
          # Ray runs what it starts at the lowest priority but four.
          'RAY_worker_niceness': '0', 'AUDIORANK_CACHE': str(cache)}


def worker(env, workdir):
  """Starts the worker of a run; its output goes to <workdir>.txt."""
  with open(f'{workdir}.txt', 'ab') as said:
    return subprocess.Popen(
        [sys.executable, '-m', 'launch.train', f'--workdir={workdir}'],
        cwd=ROOT, env=env, stdout=said, stderr=said)


def wait_for(workdir, process, doing, step=0, timeout=600):
  """Waits until a run's worker tells that it does something at a step or
  later; returns what it tells."""
  end = time.monotonic() + timeout
  while time.monotonic() < end:
    told = lease.read(workdir)
    if (told.get('pid') == process.pid and told['step'] >= step
        and told['doing'].startswith(doing)):
      return told
    assert process.poll() is None, said(workdir)
    time.sleep(.01)
  raise AssertionError(said(workdir))


def said(workdir):
  """Returns what a run's workers printed."""
  return pathlib.Path(f'{workdir}.txt').read_text()


def final(workdir):
  """Returns (parameters, records without times) of a run."""
  leaves = [np.asarray(x) for x in
            jax.tree.leaves(checkpoint.load(workdir)[1])]
  kept = [{k: v for k, v in r.items() if k not in records.TIMES}
          for r in records.read(workdir)]
  return leaves, kept


def check_same(ours, theirs):
  """Asserts that two runs ended in the same bits and the same records."""
  for a, b in zip(final(ours)[0], final(theirs)[0], strict=True):
    np.testing.assert_array_equal(a, b)
  assert final(ours)[1] == final(theirs)[1]


def stat(pid):
  """Returns (state, parent) of a process, or None when it is gone."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  state, parent = text.rpartition(')')[2].split()[:2]
  return state, int(parent)


def parent(pid):
  """Returns a process's parent."""
  return stat(pid)[1]


def descendants(pid):
  """Returns the processes that a process started, and those they did."""
  by_parent = {}
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    told = stat(path.name)
    if told:
      by_parent.setdefault(told[1], []).append(int(path.name))
  out, left = [], [pid]
  while left:
    found = by_parent.get(left.pop(), [])
    out, left = out + found, left + found
  return out


def running(*words):
  """Returns the processes whose command has each of some words in it."""
  out = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      command = path.read_bytes().decode(errors='replace')
    except OSError:
      continue
    if all(word in command for word in words):
      out.append(int(path.parent.name))
  return out


def trainers(folder):
  """Returns the processes that train a run of a folder."""
  return [*running('launch.train', f'--workdir={folder}'),
          *running('launch/__main__.py', 'worker', f'--root={folder}')]


def zombies(pid):
  """Returns the dead children that a process has not reaped."""
  found = [(p.name, stat(p.name)) for p in
           pathlib.Path('/proc').glob('[0-9]*')]
  return [int(name) for name, told in found if told == ('Z', pid)]


def check_nobody_left(folder, seconds=30):
  """Asserts that no worker of a folder's runs lives on."""
  end = time.monotonic() + seconds
  while trainers(folder):
    assert time.monotonic() < end, 'a worker is left'
    time.sleep(.1)
