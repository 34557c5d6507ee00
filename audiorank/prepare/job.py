"""The whole job: list, plan, decode in workers, describe.

Shapes: S samples.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import shutil
from typing import NamedTuple
import zlib

from absl import logging

from audiorank import audio as audio_files
from audiorank import files
from audiorank.prepare import listing
from audiorank.prepare import pool
from audiorank.prepare import progress
from audiorank.prepare import shards

RATE = 16000


class Clip(NamedTuple):
  """What `write` takes: a wave and where it comes from."""
  file: str
  source: str
  category: str
  wave_S: object


def run(audio, out, workers=None, piece_seconds=30.0, max_hours=12.0,
        timeout=60.0, max_members=10**6, max_unpacked_gb=200.0):
  """Prepares a folder or tar of sound files; goes on where it was stopped.

  Args:
    audio: a folder (any depth; tars in it are read too) or a tar, which may be
      compressed.
    out: folder to write; new, empty, or begun by the same call.
    workers: processes; None means one per core that may be used.
    piece_seconds: longest record; longer files are cut in equal parts.
    max_hours: longer files are refused.
    timeout: seconds without progress after which a file is given up.
    max_members: the most members that a tar may have.
    max_unpacked_gb: the most that all compressed tars together may unpack to.

  Returns:
    the contents of corpus.json.

  Raises:
    FileNotFoundError: no such input.
    ValueError: no sound in the input, or all of it refused; an `out` that
      belongs to something else.
    OSError: `out` cannot be written.
  """
  audio, out = files.path(audio), files.path(out)
  if not audio.exists():
    raise FileNotFoundError(f'{audio}: no such folder or archive')
  if not (piece_seconds > 0 and max_hours > 0 and timeout > 0):
    raise ValueError(f'piece_seconds {piece_seconds}, max_hours {max_hours}, '
                     f'timeout {timeout}: expected positive numbers')
  if workers is not None and workers < 1:
    raise ValueError(f'workers is {workers}: expected at least 1')
  if out.resolve() == audio.resolve():
    raise ValueError(f'{out}: the output cannot be the input')
  workers = workers or (len(os.sched_getaffinity(0)) if hasattr(
      os, 'sched_getaffinity') else os.cpu_count())
  settings = {'rate': RATE, 'piece_seconds': float(piece_seconds),
              'max_hours': float(max_hours)}
  packed = listing.archives(audio, skip=out)
  if not packed:
    # Before anything is written.
    entries, others = listing.scan(audio, max_members, out, {})
  with _claimed(out):
    if packed:
      unpacked = _unpack(packed, out, max_unpacked_gb)
      entries, others = listing.scan(audio, max_members, out, unpacked)
    _belongs(out, audio, {'listing': listing.fingerprint(entries),
                          'files': len(entries), **settings})
    folder = out / 'shards'
    folder.mkdir(exist_ok=True)
    runs = listing.shares(entries)
    jobs = [{'folder': str(folder), 'shard': shards.name(index),
             'settings': settings, 'struck': {},
             'entries': [entry._asdict() for entry in run]}
            for index, run in enumerate(runs)]
    names = [job['shard'] for job in jobs]
    # A complete corpus is believed by the sizes of its shards; an interrupted
    # one is checked to the last byte, by the workers.
    if not ((out / 'corpus.json').exists() and all(
        shards.check(folder, name, whole=False) for name in names)):
      _sweep(folder)
      try:
        with progress.shown(jobs, RATE) as notice:
          pool.run(jobs, workers, timeout, notice)
      finally:
        _sweep(folder)
    made = shards.finish(out, names, RATE, {
        'settings': settings, 'ignored': others})
    shutil.rmtree(out / 'unpacked', ignore_errors=True)
  return made


def _sweep(folder):
  """Removes what stopped workers left half-written."""
  for path in folder.glob('*.part'):
    path.unlink()


def write(out, clips, about, piece_seconds=30.0, clips_per_shard=512):
  """Writes waves made by a program as a prepared corpus.

  Args:
    out: folder to write; new, empty, or made by a call with the same `about`.
    clips: iterable of `job.Clip`s, or tuples like it: file, source, category,
      wave_S (float32 in [-1, 1] or int16, at 16 kHz).
    about: dictionary of scalars that says how they were made; a complete
      folder with the same is left as it is.
    piece_seconds: longest record.
    clips_per_shard: waves in a shard.

  Returns:
    the contents of corpus.json.

  Raises:
    ValueError: no clips, or an `out` that belongs to something else.
    OSError: `out` cannot be written.
  """
  out = files.path(out)
  piece = round(piece_seconds * RATE)
  with _claimed(out):
    _belongs(out, 'a program', {'about': about, 'piece_seconds': piece_seconds})
    if (out / 'corpus.json').exists():
      return json.loads((out / 'corpus.json').read_text(encoding='utf-8'))
    folder = out / 'shards'
    folder.mkdir(exist_ok=True)
    made, held = [], []

    def flush():
      name = shards.name(len(made))
      if shards.check(folder, name, whole=True) is None:
        shards.make(folder, name, held)
      made.append(name)
      held.clear()

    for file, source, category, wave_S in clips:
      if wave_S.dtype != 'int16':
        wave_S = audio_files.to_int16(wave_S)
      held.append({'file': file, 'source': source, 'category': category,
                   'pieces': [(start, wave_S[start:stop]) for start, stop
                              in shards.cuts(len(wave_S), piece)]})
      if len(held) == clips_per_shard:
        flush()
    if held:
      flush()
    return shards.finish(out, made, RATE, {'about': about})


@contextlib.contextmanager
def _claimed(out):
  """Holds the folder, so that no second job writes it at the same time."""
  fresh = not out.exists()
  if not fresh and not out.is_dir():
    raise ValueError(f'{out}: is a file, expected a folder')
  if not fresh and not (out / 'plan.json').exists():
    strange = [p.name for p in out.iterdir()
               if p.name not in ('.lock', 'unpacked')
               and p.suffix != '.part']
    if strange:
      raise ValueError(f'{out}: not empty ({sorted(strange)[0]}, ...) and not '
                       'begun by prepare')
  out.mkdir(parents=True, exist_ok=True)
  with open(out / '.lock', 'w', encoding='utf-8') as lock:
    try:
      files.lock(lock)
    except BlockingIOError:
      raise ValueError(f'{out}: another prepare is writing it') from None
    except OSError:
      # Some network file systems have no locks; two jobs would only waste.
      logging.warning('%s: cannot be locked', out)
    yield


def _belongs(out, audio, plan):
  """Notes what `out` is made from, or raises when it is something else."""
  path = out / 'plan.json'
  # As JSON gives it back.
  plan = json.loads(json.dumps({'format': shards.FORMAT, **plan}))
  if not path.exists():
    files.write_text(path, json.dumps(plan, indent=1))
    return
  try:
    before = json.loads(path.read_text(encoding='utf-8'))
  except ValueError:
    raise ValueError(f'{path}: damaged; remove the folder') from None
  for key in {**before, **plan}:
    was, now = before.get(key), plan.get(key)
    if was != now and key not in ('listing', 'files'):
      raise ValueError(f'{out}: made with {key} {was}, now {now}; choose '
                       'another folder')
  if before != plan:
    raise ValueError(
        f'{out}: made from another input ({before["files"]} files then, '
        f'{plan["files"]} in {audio} now, or other sizes); choose another '
        'folder')


def _unpack(packed, out, max_gb):
  """Decompresses tars to plain ones, as `listing.scan` takes them.

  Nothing that they hold is followed or trusted, its amount included.
  """
  folder = out / 'unpacked'
  folder.mkdir(exist_ok=True)
  plain, left = {}, int(max_gb * 1e9)
  for index, (_, path) in enumerate(packed):
    plain[path] = folder / f'{index:05d}.tar'
    if not plain[path].exists():
      part = folder / 'next.part'
      try:
        with open(part, 'wb') as sink:
          for data in _decompressed(path):
            if sink.tell() + len(data) > left:
              raise ValueError('damaged archive: compressed archives unpack to '
                               f'more than {max_gb:g} GB')
            sink.write(data)
        part.rename(plain[path])
      except ValueError as error:
        plain[path] = str(error)
        part.unlink()
        continue
    left -= plain[path].stat().st_size
  return plain


def _decompressed(path):
  opener = {'.gz': gzip, '.tgz': gzip, '.bz2': bz2, '.tbz2': bz2, '.xz': lzma,
            '.txz': lzma}[path.suffix.lower()].open
  try:
    with opener(path) as file:
      while data := file.read(2**20):
        yield data
  except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
    raise ValueError(f'damaged archive: {error}') from error
