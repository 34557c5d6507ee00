"""Runs worker processes: gives them jobs, replaces those that die or hang."""

from collections.abc import Callable
import contextlib
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import tempfile
import time

# A file is refused after so many workers died on it. Fewer could be a
# coincidence, for example if the machine had no memory left.
FAILURES = 3
# If so many workers in a row die before they read anything, the cause is the
# installation, not a file.
STARTUP_FAILURES = 20
START = 120  # Seconds that a process may take to start.
ROOT = pathlib.Path(__file__).resolve().parents[2]

Notice = Callable[[dict | None, dict | None], None]


def run(jobs: list[dict], count: int, timeout: float, notice: Notice) -> None:
  """Does every job, in any order.

  Args:
    jobs: dictionaries for `worker.serve`. Files on which workers died are
      added to their `skipped`.
    count: number of processes.
    timeout: seconds that a worker may be silent before it is killed.
    notice: called as notice(job, message) for each message of a worker, and as
      notice(None, None) every half second without any.

  Raises:
    OSError: a worker cannot write, or workers do not start.
  """
  waiting = list(reversed(jobs))  # The next one is the last.
  # Deaths by (shard, number of the file), and under None those of workers that
  # had not begun a file.
  failures: dict = {}
  workers: list[_Worker] = []
  with selectors.DefaultSelector() as selector:
    try:
      while waiting or any(worker.job for worker in workers):
        # No more workers than there are jobs left to do.
        while len(workers) < min(count, len(waiting) + len(workers)):
          workers.append(_Worker(selector))
        for worker in workers:
          if worker.ready and worker.job is None and waiting:
            worker.give(waiting.pop())
        # Half a second, so that silent workers are noticed too.
        events = selector.select(timeout=0.5)
        if not events:
          notice(None, None)
        for key, _ in events:
          for message in key.data.messages():
            _receive(key.data, message, failures, notice)
        # A copy, since failed workers are removed on the way.
        for worker in list(workers):
          why = worker.failure(timeout)
          if why:
            workers.remove(worker)
            worker.stop()
            _count_failure(worker, why, failures, waiting)
    finally:
      for worker in workers:
        worker.stop()


def _receive(worker: '_Worker', message: dict, failures: dict,
             notice: Notice) -> None:
  """Updates the state of a worker from a message of it.

  Raises:
    OSError: the worker cannot write.
  """
  # A full disk would stop every worker, so it ends the whole job.
  if 'fatal' in message:
    raise OSError(message['fatal'])
  notice(worker.job, message)
  if 'file' in message:
    worker.file = message['file']
    failures.pop(None, None)  # The installation works.
  if 'done' in message:
    worker.job = worker.file = None


def _count_failure(worker: '_Worker', why: str, failures: dict,
                   waiting: list[dict]) -> None:
  """Puts the job of a failed worker back, and refuses a file that kills.

  Args:
    worker: the one that failed.
    why: the reason.
    failures: see `run`; counted here.
    waiting: jobs that are waiting; the job is appended.

  Raises:
    OSError: too many workers failed before they read a file.
  """
  key = None
  if worker.job is not None:
    # The last is the next: the shard is tried again at once.
    waiting.append(worker.job)
    if worker.file is not None:
      key = (worker.job['shard'], worker.file)
  failures[key] = failures.get(key, 0) + 1
  if key is None and failures[key] >= STARTUP_FAILURES:
    raise OSError(f'worker processes die before they read: {why}; '
                  f'{worker.last_error}')
  if key is not None and worker.job and failures[key] >= FAILURES:
    worker.job['skipped'][str(worker.file)] = why


class _Worker:
  """One process, its job and its state."""

  def __init__(self, selector: selectors.BaseSelector):
    self.job: dict | None = None
    self.file: int | None = None  # Number of the file that it decodes.
    self.ready, self.last_error = False, ''
    self._selector = selector
    self._last_sign = time.monotonic()
    self._rest, self._over = b'', False
    # A file and not a pipe: a full pipe would block the worker.
    self._errors = tempfile.TemporaryFile()
    paths = [str(ROOT)]
    if os.environ.get('PYTHONPATH'):
      paths.append(os.environ['PYTHONPATH'])
    # There is one worker per core, so none may start threads of its own.
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(paths)}
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'audiorank.prepare.worker'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        env=environment)
    # Popen sets them, because they are pipes.
    assert self._process.stdin and self._process.stdout
    self._input, self._output = self._process.stdin, self._process.stdout
    selector.register(self._output, selectors.EVENT_READ, self)

  def give(self, job: dict) -> None:
    """Sends a job to the process."""
    self.job, self.file = job, None
    self._last_sign = time.monotonic()
    # If it has just died, `failure` says so.
    with contextlib.suppress(BrokenPipeError):
      self._input.write(json.dumps(job).encode() + b'\n')
      self._input.flush()

  def messages(self) -> list[dict]:
    """Returns the messages that have arrived."""
    data = os.read(self._output.fileno(), 2**16)
    self._over = not data
    self._last_sign = time.monotonic()
    # The last line may be incomplete.
    *lines, self._rest = (self._rest + data).split(b'\n')
    messages = [json.loads(line) for line in lines]
    self.ready = self.ready or bool(messages)
    return messages

  def failure(self, timeout: float) -> str:
    """Returns why this worker has to be replaced, or ''."""
    if self._over:
      code = self._process.wait()
      if code < 0:
        return f'crashed the decoder: {signal.Signals(-code).name}'
      return f'crashed the decoder: exit code {code}'
    silent = time.monotonic() - self._last_sign
    # Starting imports numpy and soundfile from a cold disk.
    if not self.ready and silent > max(timeout, START):
      return f'no sign of life in {silent:.0f} s'
    if self.job is not None and silent > timeout:
      return f'timed out: nothing decoded for {timeout:g} s'
    return ''

  def stop(self) -> None:
    """Kills the process, and keeps the last line of its stderr."""
    self._selector.unregister(self._output)
    # Not terminate: a decoder in a loop of C code heeds no signal handler.
    self._process.kill()
    self._process.wait()
    with contextlib.suppress(BrokenPipeError):
      self._input.close()
    self._output.close()
    self._errors.seek(0)
    lines = self._errors.read().decode(errors='replace').strip().splitlines()
    self.last_error = 'nothing on its stderr'
    if lines:
      self.last_error = lines[-1]
    self._errors.close()
