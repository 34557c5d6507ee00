"""Worker processes: given jobs, watched, replaced when they die or hang."""

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

# A file is refused when it took down as many workers: one death may be the
# machine's doing.
FAILURES = 3
# As many workers in a row that die before they read anything are a fault of
# the installation, not of a file.
STARTUP_FAILURES = 20
# Seconds within which a process has to be up.
START = 120
ROOT = pathlib.Path(__file__).resolve().parents[2]

Notice = Callable[[dict | None, dict | None], None]


def run(jobs: list[dict], count: int, timeout: float, notice: Notice) -> None:
  """Does every job, in any order.

  Args:
    jobs: dictionaries as `worker.serve` takes them; the files that took down
      workers are noted in their `skipped`.
    count: number of processes.
    timeout: seconds that a worker may be silent before it is killed.
    notice: called as notice(job, message) with each line a worker says; the
      message is None each half second without any.

  Raises:
    OSError: what a worker could not write; or workers that do not start.
  """
  waiting = list(reversed(jobs))
  failures: dict = {}
  workers: list[_Worker] = []
  with selectors.DefaultSelector() as selector:
    try:
      while waiting or any(worker.job for worker in workers):
        while len(workers) < min(count, len(waiting) + len(workers)):
          workers.append(_Worker(selector))
        for worker in workers:
          if worker.ready and worker.job is None and waiting:
            worker.give(waiting.pop())
        events = selector.select(timeout=0.5)
        if not events:
          notice(None, None)
        for key, _ in events:
          for message in key.data.messages():
            _receive(key.data, message, failures, notice)
        for worker in list(workers):
          why = worker.lost(timeout)
          if why:
            workers.remove(worker)
            worker.stop()
            _count_failure(worker, why, failures, waiting)
    finally:
      for worker in workers:
        worker.stop()


def _receive(worker: '_Worker', message: dict, failures: dict,
             notice: Notice) -> None:
  if 'fatal' in message:
    raise OSError(message['fatal'])
  notice(worker.job, message)
  if 'file' in message:
    worker.file = message['file']
    failures.pop(None, None)
  if 'done' in message:
    worker.job = worker.file = None


def _count_failure(worker: '_Worker', why: str, failures: dict,
                   waiting: list[dict]) -> None:
  """Puts a lost worker's job back, without the file it keeps dying of."""
  key = None
  if worker.job is not None:
    waiting.append(worker.job)
    if worker.file is not None:
      key = (worker.job['shard'], worker.file)
  failures[key] = failures.get(key, 0) + 1
  if key is None and failures[key] >= STARTUP_FAILURES:
    raise OSError(f'worker processes die before they read: {why}; '
                  f'{worker.last_error}')
  if key is not None and failures[key] >= FAILURES:
    worker.job['skipped'][str(worker.file)] = why


class _Worker:
  """One process, what it was given and what it was last heard to do."""

  def __init__(self, selector: selectors.BaseSelector):
    self.job: dict | None = None
    self.file: int | None = None
    self.ready, self.last_error = False, ''
    self._selector = selector
    self._heard, self._rest, self._over = time.monotonic(), b'', False
    self._errors = tempfile.TemporaryFile()
    path = os.environ.get('PYTHONPATH')
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT)] + ([path] if path else []))}
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'audiorank.prepare.worker'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        env=environment)
    selector.register(self._process.stdout, selectors.EVENT_READ, self)

  def give(self, job: dict) -> None:
    self.job, self.file = job, None
    self._heard = time.monotonic()
    # If it died just now, `lost` will see it.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(job).encode() + b'\n')
      self._process.stdin.flush()

  def messages(self) -> list[dict]:
    """The messages that have arrived."""
    data = os.read(self._process.stdout.fileno(), 2**16)
    self._over = not data
    self._heard = time.monotonic()
    *lines, self._rest = (self._rest + data).split(b'\n')
    messages = [json.loads(line) for line in lines]
    self.ready = self.ready or bool(messages)
    return messages

  def lost(self, timeout: float) -> str:
    """Why this worker has to be replaced, or ''."""
    if self._over:
      code = self._process.wait()
      if code < 0:
        return f'crashed the decoder: {signal.Signals(-code).name}'
      return f'crashed the decoder: exit code {code}'
    silent = time.monotonic() - self._heard
    if not self.ready and silent > max(timeout, START):
      return f'no sign of life in {silent:.0f} s'
    if self.job is not None and silent > timeout:
      return f'timed out: nothing decoded for {timeout:g} s'
    return ''

  def stop(self) -> None:
    self._selector.unregister(self._process.stdout)
    self._process.kill()
    self._process.wait()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._errors.seek(0)
    lines = self._errors.read().decode(errors='replace').strip().splitlines()
    self.last_error = lines[-1] if lines else 'nothing on its stderr'
    self._errors.close()
