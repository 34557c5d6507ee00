"""Worker processes: given jobs, watched, replaced when they die or hang."""

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
STRIKES = 3
# As many workers in a row that die before they read anything are a fault of
# the installation, not of a file.
STILLBORN = 20
# Seconds within which a process has to be up.
START = 120
ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(jobs, workers, timeout, notice):
  """Does every job, in any order.

  Args:
    jobs: dictionaries as `worker.serve` takes them; the files that took down
      workers are noted in their `struck`.
    workers: number of processes.
    timeout: seconds that a worker may be silent before it is killed.
    notice: called as notice(job, message) with each line a worker says; the
      message is None each half second without any.

  Raises:
    OSError: what a worker could not write; or workers that do not start.
  """
  waiting = list(reversed(jobs))
  strikes = {}
  crew = []
  with selectors.DefaultSelector() as selector:
    try:
      while waiting or any(member.job for member in crew):
        while len(crew) < min(workers, len(waiting) + len(crew)):
          crew.append(_Worker(selector))
        for member in crew:
          if member.ready and member.job is None and waiting:
            member.give(waiting.pop())
        events = selector.select(timeout=0.5)
        if not events:
          notice(None, None)
        for key, _ in events:
          for message in key.data.said():
            _note(key.data, message, strikes, notice)
        for member in list(crew):
          why = member.lost(timeout)
          if why:
            crew.remove(member)
            member.stop()
            _strike(member, why, strikes, waiting)
    finally:
      for member in crew:
        member.stop()


def _note(member, message, strikes, notice):
  if 'fatal' in message:
    raise OSError(message['fatal'])
  notice(member.job, message)
  if 'file' in message:
    member.file = message['file']
    strikes.pop(None, None)
  if 'done' in message:
    member.job = member.file = None


def _strike(member, why, strikes, waiting):
  """Puts a lost worker's job back, without the file it keeps dying of."""
  key = None
  if member.job is not None:
    waiting.append(member.job)
    if member.file is not None:
      key = (member.job['shard'], member.file)
  strikes[key] = strikes.get(key, 0) + 1
  if key is None and strikes[key] >= STILLBORN:
    raise OSError(f'worker processes die before they read: {why}; '
                  f'{member.said_last}')
  if key is not None and strikes[key] >= STRIKES:
    member.job['struck'][str(member.file)] = why


class _Worker:
  """One process, what it was given and what it was last heard to do."""

  def __init__(self, selector):
    self.job = self.file = None
    self.ready, self.said_last = False, ''
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

  def give(self, job):
    self.job, self.file = job, None
    self._heard = time.monotonic()
    # If it died just now, `lost` will see it.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(job).encode() + b'\n')
      self._process.stdin.flush()

  def said(self):
    """The messages that have arrived."""
    data = os.read(self._process.stdout.fileno(), 2**16)
    self._over = not data
    self._heard = time.monotonic()
    *lines, self._rest = (self._rest + data).split(b'\n')
    messages = [json.loads(line) for line in lines]
    self.ready = self.ready or bool(messages)
    return messages

  def lost(self, timeout):
    """Why this worker has to be replaced, or ''."""
    if self._over:
      code = self._process.wait()
      return ('crashed the decoder: ' + signal.Signals(-code).name
              if code < 0 else f'crashed the decoder: exit code {code}')
    silent = time.monotonic() - self._heard
    if not self.ready and silent > max(timeout, START):
      return f'no sign of life in {silent:.0f} s'
    if self.job is not None and silent > timeout:
      return f'timed out: nothing decoded for {timeout:g} s'
    return ''

  def stop(self):
    self._selector.unregister(self._process.stdout)
    self._process.kill()
    self._process.wait()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._errors.seek(0)
    lines = self._errors.read().decode(errors='replace').strip().splitlines()
    self.said_last = lines[-1] if lines else 'nothing on its stderr'
    self._errors.close()
