"""The process that decodes: it may crash, hang or be killed.

It talks in lines of JSON, jobs in, progress out, and ends when its input does,
so that none outlives a killed parent. Memory is capped.

Shapes: S samples.
"""

import io
import json
import os
import queue
import resource
import sys
import tempfile
import threading
import time

import numpy as np

from audiorank import audio
from audiorank.prepare import shards

# Beyond what the process holds at its start.
MEMORY = 4 * 2**30
# A decoded file is held in memory up to this, on disk beyond.
HELD = 2**26


def serve(jobs, say):
  """Does jobs until there are no more."""
  say({'ready': True})
  while (job := jobs.get()) is not None:
    try:
      say({'done': _shard(job, say)})
    except OSError as error:
      say({'fatal': f'cannot write {job["shard"]}: {error}'})


def _shard(job, say):
  folder, shard = job['folder'], job['shard']
  about = shards.check(folder, shard, whole=True, tick=_ticker(say))
  if about is None:
    about = shards.make(folder, shard, _items(job, say))
  return {'samples': sum(r['samples'] for r in about['records']),
          'files': len(job['entries']), 'refused': len(about['refused'])}


def _items(job, say):
  for index, entry in enumerate(job['entries']):
    say({'file': index})
    tick = _ticker(say)
    refused = job['struck'].get(str(index)) or entry['refused']
    with tempfile.SpooledTemporaryFile(HELD, dir=job['folder']) as spool:
      samples = 0
      if not refused:
        samples, refused = _decode(entry, job['settings'], spool, tick)
      if refused:
        yield _refusal(entry, refused, tick)
        continue
      yield {'file': entry['file'], 'source': entry['source'],
             'category': entry['category'],
             'pieces': _pieces(spool, samples, job['settings'])}


def _decode(entry, settings, spool, tick):
  """Writes an entry's int16 samples; returns (count, reason to refuse)."""
  samples, first, constant = 0, None, True
  try:
    file = _Region(entry)
  except OSError as error:
    return 0, f'unreadable: {error.strerror}'
  with file:
    try:
      for wave_S in audio.blocks(
          file, settings['rate'], settings['max_hours'] * 3600):
        tick(file.tell())
        pcm_S = audio.to_int16(wave_S)
        first = pcm_S[0] if first is None else first
        constant = constant and bool((pcm_S == first).all())
        samples += len(pcm_S)
        spool.write(pcm_S.astype('<i2').tobytes())
    except ValueError as error:
      if not file.failed:
        return 0, str(error).removeprefix(f'{entry["file"]}: ')
    except MemoryError:
      return 0, 'undecodable: asks for too much memory'
    if file.failed:
      return 0, f'unreadable: {file.failed}'
  if not samples:
    return 0, 'empty'
  if constant:
    return 0, f'constant: every sample is {int(first)}'
  return samples, ''


def _pieces(spool, samples, settings):
  piece = round(settings['piece_seconds'] * settings['rate'])
  spool.seek(0)
  for start, stop in shards.cuts(samples, piece):
    yield start, np.frombuffer(spool.read(2 * (stop - start)), '<i2')


def _refusal(entry, refused, tick):
  reason, _, detail = refused.partition(': ')
  sha256 = ''
  try:
    if reason not in ('not a regular file', 'unreadable'):
      sha256 = shards.checksum(
          entry['path'], entry['offset'], entry['size'], tick)
  except OSError as error:
    detail = f'{detail} ({error.strerror})'
  return {'file': entry['file'], 'reason': reason, 'detail': detail,
          'sha256': sha256}


class _Region(io.RawIOBase):
  """The bytes of one entry, read in place."""

  def __init__(self, entry):
    super().__init__()
    self.name, self.failed = entry['file'], None
    self._begin, self._size = entry['offset'], entry['size']
    self._at = 0
    self._file = open(entry['path'], 'rb')

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, offset, whence=0):
    base = (0, self._at, self._size)[whence]
    self._at = max(0, base + offset)
    return self._at

  def tell(self):
    return self._at

  def readinto(self, buffer):
    want = max(0, min(len(buffer), self._size - self._at))
    try:
      self._file.seek(self._begin + self._at)
      got = self._file.readinto(memoryview(buffer)[:want])
    # libsndfile cannot hear of it: the caller looks at `failed`.
    except OSError as error:
      self.failed = error.strerror
      return 0
    self._at += got
    return got

  def close(self):
    self._file.close()
    super().close()


def _ticker(say):
  """A function that says, at most once a second, how many bytes were read."""
  last = [time.monotonic()]

  def tick(place=0):
    if time.monotonic() - last[0] > 1:
      last[0] = time.monotonic()
      say({'place': place})
  return tick


def _main():
  # What libraries print must not mix with what is said here.
  out = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 1)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if sys.platform == 'linux':
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with open('/proc/self/statm', encoding='ascii') as file:
      held = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, hard))

  def say(message):
    out.write(json.dumps(message) + '\n')
    out.flush()

  jobs = queue.SimpleQueue()

  def listen():
    for line in sys.stdin:
      jobs.put(json.loads(line))
    os._exit(1)
  threading.Thread(target=listen, daemon=True).start()
  try:
    serve(jobs, say)
  except BrokenPipeError:
    os._exit(1)


if __name__ == '__main__':
  _main()
