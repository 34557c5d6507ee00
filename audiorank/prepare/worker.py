"""The process that decodes sound files. It may crash, hang or be killed.

It reads jobs from stdin and writes messages to stdout, both as lines of JSON.
It ends with its input, so that no worker outlives a killed parent.

Shapes: S samples.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import os
import queue
import resource
import sys
import tempfile
import threading
import time
from typing import Any
from typing import BinaryIO

import numpy as np

from audiorank import decode
from audiorank import files
from audiorank.containers import mpeg
from audiorank.data import mp3
from audiorank.data import stored
from audiorank.prepare import shards

# Bytes that a process may allocate beyond those at its start. A damaged file
# can ask a decoder for any amount.
MEMORY = 4 * 2**30
# A decoded file is kept in memory up to this many bytes, on disk beyond.
SPOOL = 2**26

# Largest difference, in steps of int16, between a record of an MP3 that is read
# by the index of its frames and the same part of the whole file. Only rounding
# differs. Beyond this the index is wrong, and not used.
MOST_ERROR = 2

Spool = BinaryIO | tempfile.SpooledTemporaryFile
Say = Callable[[dict], None]  # Sends a message.
Tick = Callable[[int], None]  # Called with the number of bytes read so far.
Placer = Callable[[int, np.ndarray], tuple[dict, np.ndarray]]


def serve(jobs: queue.SimpleQueue, say: Say) -> None:
  """Does jobs until None arrives.

  Args:
    jobs: dictionaries of `job._jobs`: folder, shard, settings, entries, and
      skipped, {number of an entry: why not to decode it}.
    say: takes the messages. Their keys are 'ready', 'file' (number of the entry
      that is begun), 'place' (bytes read of it), 'done' (counts) and 'fatal'.
  """
  say({'ready': True})
  while (job := jobs.get()) is not None:
    try:
      say({'done': _shard(job, say)})
    except files.StoreError as error:
      # Of an input on a bucket. It ends the job: if it refused the file, an
      # outage would cost every file that it lasts for.
      say({'fatal': str(error)})
    except OSError as error:
      say({'fatal': f'cannot write {job["shard"]}: {error}'})


def _shard(job: dict, say: Say) -> dict:
  """Writes a shard unless it is complete; returns its counts."""
  folder, shard, store = job['folder'], job['shard'], job['settings']['store']
  about = shards.check(folder, shard, whole=True, tick=_ticker(say))
  if about is None:
    about = shards.make(folder, shard, _items(job, say), store,
                        job['settings']['rate'])
  return {'samples': sum(r['samples'] for r in about['records']),
          'files': len(job['entries']), 'refused': len(about['refused'])}


def _items(job: dict, say: Say) -> Iterator[dict]:
  """Yields an item of `shards.make` for every entry."""
  settings = job['settings']
  pages: dict[str, Any] = {}  # Of the parquet file being read.
  for index, entry in enumerate(job['entries']):
    say({'file': index})
    tick = _ticker(say)
    refused = job['skipped'].get(str(index)) or entry['refused']
    about: dict[str, Any] = {}
    # A file is written to the shard only after all of it was decoded, because
    # it may turn out to be damaged at its end.
    with tempfile.SpooledTemporaryFile(SPOOL, dir=job['folder']) as spool:
      samples = 0
      if not refused:
        samples, refused = _decode(entry, settings, spool, tick, about, pages)
      if refused:
        yield _refusal(entry, refused, tick, about)
        continue
      item = {'file': entry['file'], 'source': entry['source'],
              'category': entry['category'], 'format': about['format'],
              'pieces': _pieces(spool, samples, settings)}
      if settings['store'] == 'none':
        item['place'] = _placer(_spanned(entry, pages), settings, about, pages)
      yield item


def _decode(entry: dict, settings: dict, spool: Spool, tick: Tick,
            about: dict, pages: dict) -> tuple[int, str]:
  """Writes an entry's int16 samples to `spool`.

  Args:
    entry: a listing.Entry as a dictionary.
    settings: of the job.
    spool: file for the samples.
    tick: called with the number of bytes read so far.
    about: gets the file's format, rate and more; see decode.blocks.
    pages: see `_opened`.

  Returns:
    (number of samples, reason to refuse the file or '').
  """
  samples, constant = 0, True
  first: Any = None
  region: Any = None
  try:
    region = _opened(entry, pages)
    for wave_S in decode.blocks(
        region, settings['rate'], settings['max_hours'] * 3600, about):
      tick(region.tell())
      pcm_S = decode.to_int16(wave_S)
      if first is None:
        # A constant file is silence or a broken recording.
        first = pcm_S[0]
      constant = constant and bool((pcm_S == first).all())
      samples += len(pcm_S)
      # Little-endian on every machine.
      spool.write(pcm_S.astype('<i2').tobytes())
    # A decoder takes what it could not read for the end of the file.
    stored.check_reads(region)
  except ValueError as error:
    try:
      # If reading failed, what the decoder says of the missing bytes misleads.
      stored.check_reads(region)
    except ValueError as cause:
      return 0, str(cause)
    return 0, str(error).removeprefix(f'{decode.name(region)}: ')
  except MemoryError:
    return 0, 'undecodable: asks for too much memory'
  shortest = round(settings['min_seconds'] * settings['rate'])
  if not samples:
    return 0, 'empty'
  if samples < shortest:
    return 0, f'too short: {samples} samples, expected at least {shortest}'
  if constant:
    return 0, f'constant: every sample is {int(first)}'
  return samples, ''


def _opened(entry: dict, pages: dict) -> Any:
  """Returns an entry's sound file, open.

  Args:
    entry: a listing.Entry as a dictionary.
    pages: keeps the last page of a parquet file between calls, and the last
      sound of a bucket.

  Raises:
    ValueError: it cannot be opened.
  """
  # Offsets mean nothing in another file.
  if pages.get('path') != entry['path']:
    pages.clear()
    pages['path'] = entry['path']
  try:
    handle = stored.Handle(entry['path'])
  except OSError as error:
    raise ValueError(f'unreadable: {error.strerror}') from error
  address = stored.Address(
      entry['file'], entry['offset'], entry['size'], entry['inner'])
  if not handle.remote:
    return stored.opened(handle, address, pages)
  # Pieces are read again one by one; the download is not repeated.
  if pages.get('sound') != address:
    pages['data'] = stored.opened(handle, address, pages)
    pages['sound'] = address
  if not isinstance(pages['data'], stored.Region):
    pages['data'].seek(0)  # In memory.
    return pages['data']
  return stored.ahead(stored.opened(handle, address, pages))


def _pieces(spool: Spool, samples: int, settings: dict) -> Iterator:
  """Yields (start, wave_S) of a decoded file, cut in records."""
  piece = round(settings['piece_seconds'] * settings['rate'])
  spool.seek(0)
  for start, stop in shards.cuts(samples, piece):
    yield start, np.frombuffer(spool.read(2 * (stop - start)), '<i2')


def _spanned(entry: dict, pages: dict) -> dict:
  """Returns an entry of parquet with the place of its own bytes.

  Training then reads these bytes alone instead of a whole page.
  """
  if not entry['inner']:
    return entry
  span = stored.span(stored.Handle(entry['path']), stored.Address(
      entry['file'], entry['offset'], entry['size'], entry['inner']), pages)
  return {**entry, 'offset': span.offset, 'size': span.size,
          'inner': span.text()}


def _place(entry: dict, settings: dict, about: dict) -> dict:
  """Returns the columns of the manifest that say where a file's records are."""
  # For gs:// too: it is relative.
  shard = os.path.relpath(entry['path'], settings['audio'])
  if shard == '.':
    shard = ''  # The input is that one file.
  return {'shard': shard, 'position': entry['offset'], 'bytes': entry['size'],
          'inner': stored.MEND * about['mended'] + entry['inner']}


def _placer(entry: dict, settings: dict, about: dict, pages: dict) -> Placer:
  """Returns how `shards.make` finds the place of a record in its file.

  Args:
    entry: with the place of its own bytes.
    settings: of the job.
    about: of decode.blocks.
    pages: see `_opened`.
  """
  place, rate = _place(entry, settings, about), settings['rate']
  if about['rate'] == rate and not about['lossy']:
    return lambda start, wave_S: (place, wave_S)
  chunk = shards.chunk('none', rate)
  table = None
  # A sound in a parquet file is read as a whole.
  if about['format'] == 'mp3' and ':' not in entry['inner']:
    table = mpeg.table(_opened(entry, pages))

  def found(start: int, wave_S: np.ndarray) -> tuple[dict, np.ndarray]:
    # The manifest has the checksum of what training will read. Decoded or
    # resampled in chunks, it may differ in its last bits.
    length = len(wave_S)
    if table is not None:
      chunks = _chunks(table, start, length, rate, chunk, about)
      with contextlib.suppress(ValueError):  # Such as of a wrong index.
        read_S = stored.piece(_opened(entry, pages), start, length, 0, length,
                              rate, chunk, chunks)
        if np.abs(read_S - wave_S.astype(np.int32)).max() <= MOST_ERROR:
          return {**place, 'inner': chunks.text()}, read_S
    source = _opened(entry, pages)
    if place['inner'].startswith(stored.MEND):
      source = stored.mended(source)
    return place, stored.piece(source, start, length, 0, length, rate, chunk)
  return found


def _chunks(table: mpeg.Table, start: int, length: int, rate: int, chunk: int,
            about: dict) -> mp3.Chunks:
  """Returns where the chunks of a record of an MP3 are.

  Args:
    table: of its frames.
    start, length: of the record, at `rate`.
    rate: samples per second of the corpus.
    chunk: samples of a chunk.
    about: of decode.blocks.
  """
  own, out = about['rate'], []
  for at in range(start, start + length, chunk):
    stop = min(at + chunk, start + length)
    first, last = at, stop
    if own != rate:
      first, last = stored.window(at, stop, own, rate)
    out.append(mp3.chunk(table, first, last, stored.LEAD))
  return mp3.Chunks(round(about['seconds'] * own), out)


def _refusal(entry: dict, refused: str, tick: Tick, about: dict) -> dict:
  """Returns the line of quarantine.jsonl for a refused file."""
  reason, _, detail = refused.partition(': ')
  # What cannot be read has no checksum; a sound within parquet is no range of
  # bytes of its own.
  sha256 = ''
  try:
    if reason not in ('not a regular file', 'unreadable') and not entry[
        'inner']:
      sha256 = shards.checksum(
          entry['path'], entry['offset'], entry['size'], tick)
  except OSError as error:
    detail = f'{detail} ({error.strerror})'
  form = about.get('format') or entry['file'].rpartition('.')[2].lower()
  # A long ending is not one, but part of a name with a full stop.
  if len(form) >= 12:
    form = ''
  return {'file': entry['file'], 'reason': reason, 'detail': detail,
          'sha256': sha256, 'format': form,
          'seconds': about.get('seconds', 0)}


def _ticker(say: Say) -> Tick:
  """Returns a Tick that sends messages, at most one per second."""
  last = time.monotonic()

  # The parent only needs to know that work goes on.
  def tick(place: int = 0) -> None:
    nonlocal last
    if time.monotonic() - last > 1:
      last = time.monotonic()
      say({'place': place})
  return tick


def _main() -> None:
  # Messages get a copy of stdout, and stdout itself leads to nowhere: text that
  # a library prints must not mix with them.
  out = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 1)
  # A crash of a decoder is expected and needs no core file.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if sys.platform == 'linux':
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with open('/proc/self/statm', encoding='ascii') as file:
      size = int(file.read().split()[5]) * resource.getpagesize()  # Data.
    # A decoder that asks for more gets MemoryError, and its file is refused.
    resource.setrlimit(resource.RLIMIT_DATA, (size + MEMORY, hard))

  def say(message: dict) -> None:
    out.write(json.dumps(message) + '\n')
    out.flush()

  jobs: queue.SimpleQueue = queue.SimpleQueue()

  # In a thread, so that the process also ends in the middle of a file when its
  # parent is gone.
  def listen() -> None:
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
