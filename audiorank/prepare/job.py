"""Prepares a corpus: lists files, plans shards, decodes, writes the summary.

Shapes: S samples.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from audiorank import config as config_lib
from audiorank import decode
from audiorank import files
from audiorank.prepare import archives
from audiorank.prepare import listing
from audiorank.prepare import pool
from audiorank.prepare import progress
from audiorank.prepare import shards
from audiorank.prepare import sources as sources_lib

RATE = config_lib.RATE
# The contents of .lock. It marks a folder as a corpus from the beginning, so
# that no other folder is ever overwritten.
MARK = 'audiorank prepare\n'
# Seconds without progress after which a file of a bucket is refused. Longer
# than all attempts of a request, so that an outage refuses none.
PATIENCE = 600.
# Settings that were added later, and their values in older plans.
LATER = {'store': 'int16', 'min_seconds': 0.}


class Clip(NamedTuple):
  """A wave for `write`, and its origin."""
  file: str  # Name for the manifest.
  source: str  # Name of the recording.
  category: str  # '' for none.
  wave_S: np.ndarray


def run(audio: str | os.PathLike, out: str | os.PathLike,
        workers: int | None = None, piece_seconds: float = 30.0,
        max_hours: float = 12.0, timeout: float = 60.0,
        max_members: int = 10**6, max_unpacked_gb: float = 200.0,
        min_seconds: float = .04, store: str = 'int16',
        manifest: str | os.PathLike | None = None, file_column: str = '',
        source_column: str = '', source_pattern: str = '') -> dict:
  """Prepares sound files. A call that was interrupted resumes.

  Args:
    audio: a folder (searched to any depth, with the tars and parquet files in
      it), a tar, which may be compressed, or a parquet file; on a disk or on
      gs://.
    out: folder to write, or gs://: new, empty, or begun by the same call.
    workers: processes; None means one per available core.
    piece_seconds: longest record; longer files are cut into equal parts.
    max_hours: longer files are refused.
    timeout: seconds without progress after which a file is refused.
    max_members: the most members that a tar may have.
    max_unpacked_gb: the most that all compressed tars together may unpack to.
    min_seconds: shorter files are refused. The default is one token, 40 ms.
    store: how records are stored: 'int16', 'flac' or 'opus' in shards, or
      'none': the files are checked now and then read in place.
    manifest: a table with the recording of each file; None uses manifest.csv
      of the input folder if there is one.
    file_column, source_column: names of its columns; '' looks for the usual
      ones.
    source_pattern: a regular expression that finds the recording in a file's
      name. A table then only sets categories.

  Returns:
    the contents of corpus.json.

  Raises:
    FileNotFoundError: no such input.
    ValueError: no sound in the input, or all of it refused; an `out` that
      belongs to something else, or contains the input; an unreadable table.
    OSError: `out` cannot be written, or a bucket cannot be read.
  """
  audio, target = files.path(audio, 'audio'), files.path(out)
  _check(audio, target, workers, piece_seconds, max_hours, timeout, store)
  out = _begin(target, audio, store)
  workers = workers or _cores()
  settings = {'rate': RATE, 'piece_seconds': float(piece_seconds),
              'max_hours': float(max_hours), 'min_seconds': float(min_seconds),
              'store': store}
  table = _table_path(audio, manifest)
  tables = {path for path in [table] if path}
  below = listing.walk(audio, skip=target)
  packed = listing.packed(below)
  if packed and store == 'none':
    raise ValueError(f'{packed[0]}: cannot be read in place while it is '
                     'compressed; unpack it, or choose another store than none')

  def listed(unpacked: dict) -> tuple[list, listing.Passed, dict]:
    every = listing.scan(audio, below, max_members, unpacked, tables)
    return _with_sources(every, audio, table, file_column, source_column,
                         source_pattern)

  if not packed:
    # Before the folder is created: an input without sound leaves no trace.
    entries, passed, sources = listed({})
  with _locked(out):
    if packed:
      entries, passed, sources = listed(archives.unpack(
          packed, out / 'unpacked', max_unpacked_gb))
    _check_plan(out, audio, {'listing': listing.fingerprint(entries),
                             'files': len(entries), **settings})
    jobs = _jobs(out, entries, {**settings, 'audio': str(audio.absolute())})
    if files.is_on_bucket(audio):
      timeout = max(timeout, PATIENCE)
    _make(out, jobs, workers, timeout)
    about = _about(settings, passed, sources, _relative(audio, target))
    # The summary last: corpus.json says that everything else is complete.
    described = shards.finish(str(out), [job['shard'] for job in jobs], RATE,
                              about, store)
    archives.remove_unpacked(len(packed), out / 'unpacked')
    if files.is_on_bucket(target):
      files.send(out, target, last='corpus.json')
  return described


def _about(settings: dict, passed: listing.Passed, sources: dict,
           audio: str) -> dict:
  """Returns what corpus.json says beside the records."""
  place = {}
  if settings['store'] == 'none':
    place['audio'] = audio
  return {
      **place, 'settings': settings, 'ignored': sum(passed.kinds.values()),
      'ignored_kinds': dict(passed.kinds.most_common()),
      'suspects': passed.suspects, 'suspects_count': passed.suspects_count,
      'sources_from': sources}


def _relative(audio: pathlib.Path, out: pathlib.Path) -> str:
  """Returns how a corpus that is read in place names its input: relative to
  itself, so that both can be moved together, or by URL."""
  if files.is_on_bucket(audio) and not files.is_on_bucket(out):
    return files.absolute(audio)
  source, corpus = files.absolute(audio), files.absolute(out)
  # Of two buckets, gs: and nothing else is common.
  if files.is_on_bucket(source) and (
      source.split('/')[2] != corpus.split('/')[2]):
    return source
  return os.path.relpath(source, corpus)


def _begin(target: pathlib.Path, audio: pathlib.Path,
           store: str) -> pathlib.Path:
  """Returns the local folder that a corpus is written to: of one on a bucket,
  a folder of the user's cache, which gets the plan that is there."""
  out = files.beside(target)
  if not files.is_on_bucket(target):
    return out
  if store == 'none' and not files.is_on_bucket(audio):
    raise ValueError(f'{target}: expected another store than none: the sounds '
                     'are not on a bucket')
  there = files.names(target)
  if 'plan.json' in there:
    plan = target / 'plan.json'
    files.write_bytes(out / 'plan.json', plan.read_bytes())
  elif there:
    raise ValueError(f'{target}: not empty ({min(there)}, ...) and not begun '
                     'by prepare')
  return out


def _check(audio: pathlib.Path, out: pathlib.Path, workers: int | None,
           piece_seconds: float, max_hours: float, timeout: float,
           store: str) -> None:
  """Raises an error if an argument of `run` is wrong."""
  if not audio.exists():
    raise FileNotFoundError(f'{audio}: no such folder or archive')
  if not (piece_seconds > 0 and max_hours > 0 and timeout > 0):
    raise ValueError(f'piece_seconds {piece_seconds}, max_hours {max_hours}, '
                     f'timeout {timeout}: expected positive numbers')
  if workers is not None and workers < 1:
    raise ValueError(f'workers is {workers}: expected at least 1')
  if store not in shards.STORES:
    raise ValueError(f'store {store!r}: expected one of '
                     f'{", ".join(shards.STORES)}')
  inner, outer = audio.resolve(), out.resolve()
  # A bucket and a disk do not contain each other.
  if files.is_on_bucket(inner) != files.is_on_bucket(outer):
    return
  if inner == outer:
    raise ValueError(f'{out}: the output cannot be the input')
  if inner.is_relative_to(outer):
    raise ValueError(f'{out}: the output contains the input {audio}; choose a '
                     'folder beside or below it')


def _cores() -> int:
  """Returns the number of cores that this process may use."""
  # In a container or a batch job these are fewer than the machine has.
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _table_path(audio: pathlib.Path,
                manifest: str | os.PathLike | None) -> pathlib.Path | None:
  """Returns the table of sources, or None."""
  if manifest is not None:
    path = files.path(manifest)
    if not path.is_file():
      raise FileNotFoundError(f'{path}: no such file')
    return path
  path = audio / 'manifest.csv'
  if audio.is_dir() and path.is_file():
    return path
  return None


def _with_sources(every: listing.Listing, audio: pathlib.Path,
                  table: pathlib.Path | None, file_column: str,
                  source_column: str, pattern: str) -> tuple[
                      list, listing.Passed, dict]:
  """Finds the recording of each file, by pattern or by table.

  Args:
    every: the listing.
    audio: the input.
    table, file_column, source_column, pattern: as for `run`.

  Returns:
    entries with their sources, the files that are not read, and counts for
    the summary.
  """
  entries, passed = every
  names = [entry.file for entry in entries]
  about: dict[str, Any] = {}
  if table is not None:
    rows = sources_lib.read(table, file_column, source_column)
    by_file, counts = sources_lib.match(rows, names, str(audio.absolute()))
    entries = listing.with_sources(entries, by_file)
    about = {'table': str(table), 'note': rows.note, 'files': len(by_file),
             'recordings': rows.recordings, **counts}
  if pattern:
    # After the table, which then decides only the categories.
    by_name, missed = sources_lib.of_pattern(pattern, names)
    entries = listing.with_sources([
        entry._replace(source=entry.file) for entry in entries], {
            file: sources_lib.Row(file, source, '')
            for file, source in by_name.items()})
    about |= {'pattern': pattern, 'files_by_pattern': len(by_name),
              'missed': missed}
  return entries, passed, about


def _jobs(out: pathlib.Path, entries: list, settings: dict) -> list[dict]:
  """Returns the jobs of the workers, one per shard; see pool.run."""
  folder = out / 'shards'
  return [{'folder': str(folder), 'shard': shards.name(
      index, settings['store']), 'settings': settings, 'skipped': {},
           'entries': [entry._asdict() for entry in share]}
          for index, share in enumerate(listing.shares(entries))]


def _make(out: pathlib.Path, jobs: list[dict], workers: int,
          timeout: float) -> None:
  """Writes the shards that are missing."""
  folder = out / 'shards'
  folder.mkdir(exist_ok=True)
  _remove_parts(out)
  # Of a complete corpus only the sizes of its shards are checked, so that
  # repeating a command is fast. In an interrupted one the workers compare
  # checksums.
  if (out / 'corpus.json').exists() and all(
      shards.check(str(folder), job['shard'], whole=False) for job in jobs):
    return
  try:
    with progress.shown(jobs, RATE) as notice:
      pool.run(jobs, workers, timeout, notice)
  finally:
    _remove_parts(out)


def _remove_parts(out: pathlib.Path) -> None:
  """Removes the unfinished files of a process that was killed."""
  shard = r'shard-\d{5}\.(array_record|tar|list)'
  ours = re.compile(rf'{shard}\.\d+\.part|\.({shard}\.json|plan\.json|'
                    r'corpus\.json)\.\d+-\d+\.part')
  for folder in (out, out / 'shards'):
    for path in folder.glob('*.part'):
      if ours.fullmatch(path.name):
        path.unlink()


def write(out: str | os.PathLike, clips: Iterable, about: dict,
          piece_seconds: float = 30.0, clips_per_shard: int = 512) -> dict:
  """Writes waves that a program made as a prepared corpus.

  Args:
    out: local folder to write: new, empty, or from a call with the same
      `about`.
    clips: iterable of `job.Clip`s, or tuples like it: file, source, category,
      wave_S (float32 in [-1, 1] or int16, at 16 kHz).
    about: dictionary of scalars that determine the waves. A complete folder
      with the same `about` is not written again.
    piece_seconds: longest record.
    clips_per_shard: waves in a shard.

  Returns:
    the contents of corpus.json.

  Raises:
    ValueError: no clips, or an `out` that belongs to something else.
    OSError: `out` cannot be written.
  """
  out = files.on_disk(out)
  piece = round(piece_seconds * RATE)
  with _locked(out):
    _check_plan(out, 'a program', {'about': about,
                                   'piece_seconds': piece_seconds})
    if (out / 'corpus.json').exists():
      return files.read_json(out / 'corpus.json')
    folder = out / 'shards'
    folder.mkdir(exist_ok=True)
    names: list[str] = []
    items: list[dict] = []

    def flush() -> None:
      # Shards that an interrupted call completed are not written again.
      name = shards.name(len(names))
      if shards.check(str(folder), name, whole=True) is None:
        shards.make(str(folder), name, items)
      names.append(name)
      items.clear()

    for file, source, category, wave_S in clips:
      if wave_S.dtype != 'int16':
        wave_S = decode.to_int16(wave_S)
      items.append({'file': file, 'source': source, 'category': category,
                    'pieces': [(start, wave_S[start:stop]) for start, stop
                               in shards.cuts(len(wave_S), piece)]})
      if len(items) == clips_per_shard:
        flush()
    if items:
      flush()
    return shards.finish(str(out), names, RATE, {'about': about})


@contextlib.contextmanager
def _locked(out: pathlib.Path) -> Iterator[None]:
  """Locks the folder, so that no other job writes it at the same time.

  Raises:
    ValueError: it is a file, belongs to something else, or is locked.
  """
  if out.exists() and not out.is_dir():
    raise ValueError(f'{out}: is a file, expected a folder')
  if out.exists() and not _is_ours(out):
    strange = sorted(p.name for p in out.iterdir())
    if strange:
      raise ValueError(f'{out}: not empty ({strange[0]}, ...) and not '
                       'begun by prepare')
  out.mkdir(parents=True, exist_ok=True)
  with open(out / '.lock', 'a+', encoding='utf-8') as lock:
    try:
      files.lock(lock)
    except BlockingIOError:
      raise ValueError(f'{out}: another prepare is writing it') from None
    except OSError:
      # Some network file systems have no locks. Two jobs would write the same
      # files twice, which does no harm.
      logging.warning('%s: cannot be locked', out)
    if not os.fstat(lock.fileno()).st_size:
      lock.write(MARK)
      lock.flush()
    yield


def _is_ours(out: pathlib.Path) -> bool:
  """Returns whether a folder is a corpus: has a plan, or a lock with MARK."""
  try:
    plan = files.read_json(out / 'plan.json')
    # Other programs may also call a file plan.json; ours have a format.
    return isinstance(plan, dict) and 'format' in plan
  except FileNotFoundError:
    pass
  except ValueError:
    # A damaged plan, about which `_check_plan` raises a clearer error.
    return (out / '.lock').is_file()
  try:
    return (out / '.lock').read_text(encoding='utf-8') == MARK
  except (OSError, ValueError):
    return False


def _check_plan(out: pathlib.Path, audio: Any, plan: dict) -> None:
  """Writes plan.json, or compares it with the one that `out` has.

  Args:
    out: the corpus.
    audio: the input, for messages.
    plan: input and settings, as JSON.

  Raises:
    ValueError: `out` was made from another input or with other settings.
  """
  path = out / 'plan.json'
  store = plan.get('store', 'int16')
  # Through JSON, so that it compares equal to the file: tuples become lists.
  plan = json.loads(json.dumps({'format': shards.STORES[store][0], **plan}))
  if not path.exists():
    files.write_text(path, json.dumps(plan, indent=1))
    return
  try:
    before = files.read_json(path)
  except ValueError:
    raise ValueError(f'{path}: damaged; remove the folder') from None
  if 'store' in plan:
    # A corpus from before a setting existed is still valid. min_seconds did
    # not exist as a check, so such a corpus agrees with every value of it.
    for key, value in LATER.items():
      if key == 'min_seconds':
        value = plan[key]
      before.setdefault(key, value)
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
