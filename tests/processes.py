"""Runs and sweeps as processes, and how they are watched from outside."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import flags
import jax
import numpy as np

from audiorank import checkpoint
from audiorank import records
from audiorank.records import lock as lock_lib

ROOT = pathlib.Path(__file__).parents[1]


def environment(cache):
  """Returns the environment of a command: CPU, a cache of its own.

  All commands of a session share what they compile.
  """
  cache, compiled = pathlib.Path(cache), os.environ.get('TESTS_COMPILED')
  if compiled and not (cache.exists() and any(cache.iterdir())):
    pathlib.Path(compiled).mkdir(exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / 'compiled').symlink_to(compiled)
  path = os.pathsep.join([str(ROOT), *filter(None, [
      os.environ.get('PYTHONPATH')])])
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path,
          'RAY_USAGE_STATS_ENABLED': '0',
          # Ray runs what it starts at the lowest priority but four.
          'RAY_worker_niceness': '0', 'AUDIORANK_CACHE': str(cache)}


# Imports once what every command needs, then forks a child a command: a start
# costs a tenth of a second instead of three.
SERVER = """
import ctypes, importlib, json, os, signal, sys
for name in sys.argv[1:]:
  importlib.import_module(name)
from launch import cli
for line in sys.stdin:
  about = json.loads(line)
  if 'pid' in about:
    pid, status = os.waitpid(about['pid'], os.WNOHANG)
    print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None),
          flush=True)
    continue
  pid = os.fork()
  if pid:
    print(pid, flush=True)
    continue
  os.setsid()
  # A test that is ended leaves nothing behind.
  ctypes.CDLL(None).prctl(1, signal.SIGTERM)
  for number, output in enumerate(about['outputs'], 1):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.environ.update(about['env'])
  exec(about['before'])
  if 'JAX_NUM_CPU_DEVICES' in about['env']:  # jax has been imported.
    import jax
    jax.config.update('jax_num_cpu_devices',
                      int(about['env']['JAX_NUM_CPU_DEVICES']))
  sys.argv = about['argv']
  module = importlib.import_module('launch.' + about['argv'][0])
  cli.run(module.main, words=about['argv'][0] == 'sweep')
  os._exit(0)
"""
# Nothing that defines a flag: each command has its own.
PRELOADED = ('launch.cli', 'launch.engines.local', 'launch.grid',
             'launch.overview', 'audiorank.train', 'audiorank.evaluate',
             'audiorank.report')


class Server:
  """Starts commands by forking; see SERVER.

  Args:
    env: the environment of all of them.
  """

  def __init__(self, env):
    self.process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', SERVER, *PRELOADED], cwd=ROOT,
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def ask(self, **about):
    """Returns the server's answer to a request."""
    self.process.stdin.write(json.dumps(about) + '\n')
    self.process.stdin.flush()
    return json.loads(self.process.stdout.readline())

  def start(self, outputs, name, *arguments, before='', **env):
    """Starts launch.<name>; its output is appended to files.

    Args:
      outputs: files of standard output and standard error.
      name, *arguments: the command.
      before: Python that its process runs first.
      **env: variables for it alone.
    """
    pid = self.ask(outputs=[str(o) for o in outputs],
                   argv=[name, *map(str, arguments)], env=env, before=before)
    return Forked(self, pid)

  def run(self, folder, name, *arguments, timeout=300, **env):
    """Runs a command to its end, as subprocess.run does."""
    outputs = folder / 'stdout.txt', folder / 'stderr.txt'
    for output in outputs:
      output.unlink(missing_ok=True)
    code = self.start(outputs, name, *arguments, **env).wait(timeout)
    return subprocess.CompletedProcess(
        [name, *arguments], code, *(o.read_text() for o in outputs))

  def close(self):
    """Ends the server."""
    self.process.stdin.close()
    self.process.wait(60)
    self.process.stdout.close()


class Forked:
  """A command that a Server started, in the manner of subprocess.Popen."""

  def __init__(self, server, pid):
    self.server, self.pid, self.returncode = server, pid, None

  def poll(self):
    if self.returncode is None:
      self.returncode = self.server.ask(pid=self.pid)
    return self.returncode

  def wait(self, timeout=60):
    end = time.monotonic() + timeout
    while self.poll() is None:
      if time.monotonic() > end:
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
      time.sleep(.02)
    return self.returncode

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def flags_of(module, **values):
  """Gives flags of a command's module values for a while."""
  # By holder: flagsaver goes by name, which may be another command's flag.
  named = {holder.name: holder._flagvalues[holder.name]
           for holder in vars(module).values()
           if isinstance(holder, flags.FlagHolder)}
  before = {name: (named[name].value, named[name].using_default_value)
            for name in values}
  try:
    for name, value in values.items():
      named[name].value, named[name].using_default_value = value, False
    yield
  finally:
    for name, state in before.items():
      named[name].value, named[name].using_default_value = state


def worker(server, workdir, **env):
  """Starts the worker of one run; its output goes to <workdir>.txt."""
  return server.start([f'{workdir}.txt'] * 2, 'train', f'--workdir={workdir}',
                      **env)


def wait_for(workdir, process, doing, step=0, timeout=600):
  """Waits until a run's worker says that it does something at a step or
  later; returns what it says."""
  end = time.monotonic() + timeout
  while time.monotonic() < end:
    holder = lock_lib.read(workdir)
    if (holder.get('pid') == process.pid and holder['step'] >= step
        and holder['doing'].startswith(doing)):
      return holder
    assert process.poll() is None, output(workdir)
    time.sleep(.01)
  raise AssertionError(output(workdir))


def output(workdir):
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
    status = stat(path.name)
    if status:
      by_parent.setdefault(status[1], []).append(int(path.name))
  out, left = [], [pid]
  while left:
    children = by_parent.get(left.pop(), [])
    out, left = out + children, left + children
  return out


def running(*words):
  """Returns the processes whose command has each of some words, or begins a
  word with it."""
  out = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      command = path.read_bytes().decode(errors='replace').split('\0')
    except OSError:
      continue
    if all(any(given.startswith(word) for given in command)
           for word in words):
      out.append(int(path.parent.name))
  return out


def trainers(folder):
  """Returns the processes that train a run of a folder."""
  return [*running('launch.train', f'--workdir={folder}'),
          *running('worker', f'--root={folder}')]


def check_nobody_left(folder, seconds=30):
  """Asserts that no worker of a folder's runs lives on."""
  end = time.monotonic() + seconds
  while trainers(folder):
    assert time.monotonic() < end, 'a worker is left'
    time.sleep(.1)
