"""Reads the tars of X-ARES tasks as they are, as HEAR tasks.

A task of X-ARES is a folder of WebDataset tars with a sound file and a .json of
each clip. They are unpacked once, into the cache:

  <cache>/tars/<name>-<digest>/    a HEAR task folder: see tasks.py

The split is read from a tar's name (fold, train, valid or dev, test or eval),
the label from the first known key of a clip's .json. Tasks of frames, captions
or transcripts have no such label and are refused.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import io
import json
import os
import pathlib
import re
import shutil
import tarfile
import tempfile
from typing import Any

import numpy as np
import soundfile
import soxr

from audiorank import files

# Keys of the label in X-ARES' 22 tasks, most common first.
KEYS = ('label', 'labels', 'soundevent', 'sound', 'genre', 'emotion', 'gender',
        'speakerid', 'instrument_family_str', 'binary_spoof', 'position', 'tag',
        'broadcasting', 'num_speakers', 'count')
SOUNDS = ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.m4a', '.wma', '.sox')
AS_THEY_ARE = ('.wav', '.flac', '.ogg', '.opus')  # A HEAR task has these.
FOLD = re.compile(r'fold[-_]?0*(\d+)')
WORDS = {'train': 'train', 'development': 'train', 'valid': 'valid',
         'validation': 'valid', 'dev': 'valid', 'test': 'test', 'eval': 'test'}
SEVERAL = ';'  # Between the labels of a clip.


def find(root: files.Path) -> list[pathlib.Path]:
  """Returns the folders of tars in `root`, or `root` itself; [] for none."""
  root = files.path(root)
  if files.is_on_bucket(root) or not root.is_dir():
    return []
  if tars(root):
    return [root]
  return sorted(p for p in root.iterdir() if p.is_dir() and tars(p))


def tars(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Returns {split: its tars} of a folder, {} without any."""
  out: dict[str, list[pathlib.Path]] = {}
  for path in sorted(folder.glob('*.tar')):
    split = split_of(path.stem)
    # X-ARES keeps its embeddings in tars of such names beside the audio.
    if split and 'encoded' not in path.stem:
      out.setdefault(split, []).append(path)
  return out


def split_of(stem: str) -> str:
  """Returns the split in a tar's name: 'fold3', 'train', ...; '' for none."""
  fold = FOLD.search(stem)
  if fold:
    # Two digits, so that folds sorted as text are in order.
    return f'fold{int(fold[1]):02d}'
  words = [WORDS[word] for word in re.split(r'[^a-z]+', stem.lower())
           if word in WORDS]
  if words:
    return words[0]
  return ''


def unpacked(folder: pathlib.Path) -> pathlib.Path:
  """Returns the HEAR task folder of a folder of tars, from the cache.

  Raises:
    ValueError: a damaged tar, a clip without a label, no test split; names the
      file.
  """
  by_split = tars(folder)
  every = [path for paths in by_split.values() for path in paths]
  name = folder.resolve().name
  out = files.local_cache('tars') / name_of(name, every)
  if (out / 'task_metadata.json').is_file():
    return out
  out.parent.mkdir(parents=True, exist_ok=True)
  # Renamed when complete, so that a killed process leaves no half a task.
  part = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix='.part-'))
  try:
    write(folder, name, by_split, part)
    try:
      os.replace(part, out)
    except OSError:  # Another process was faster.
      if not (out / 'task_metadata.json').is_file():
        raise
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return out


def name_of(name: str, paths: list[pathlib.Path]) -> str:
  """Returns the name of an unpacked task: of its tars' sizes and times."""
  # Not of their contents, which would be read at every scoring: gigabytes.
  stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
  return f'{name}-{files.digest(stats)}'


def write(folder: pathlib.Path, name: str,
          by_split: Mapping[str, list[pathlib.Path]],
          out: pathlib.Path) -> None:
  """Writes the HEAR task of some tars.

  Args:
    folder: of the tars, for messages.
    name: of the task.
    by_split: from `tars`.
    out: an empty folder.

  Raises:
    ValueError: see `unpacked`.
  """
  labels: dict[str, dict[str, list[str]]] = {}
  key, rate = '', 0
  # The training clips first: the task has their sampling rate.
  for split in sorted(by_split, key=lambda s: (s != 'train', s)):
    labels[split] = {}
    for path in by_split[split]:
      for clip, suffix, sound, about in clips(path):
        # One key for the whole task, that of its first clip.
        key = key or label_key(path, clip, about)
        values = label_of(path, clip, about, key)
        if clip in labels[split]:
          raise ValueError(f'{path}: two clips are called {clip}')
        # The rate of the first clip; clips of other rates are resampled.
        rate = rate or read_rate(path, clip, sound)
        place = out / str(rate) / split
        place.mkdir(parents=True, exist_ok=True)
        write_clip(path, place / clip, suffix, sound, rate)
        labels[split][f'{clip}.wav'] = values
  mode = split_mode(folder, labels, out, rate)
  vocabulary = sorted({value for of in labels.values()
                       for values in of.values() for value in values})
  lines = ['idx,label', *(f'{i},{quoted(label)}'
                          for i, label in enumerate(vocabulary))]
  (out / 'labelvocabulary.csv').write_text('\n'.join(lines) + '\n',
                                           encoding='utf-8')
  # One clip with several labels, or none, makes a task multilabel.
  several = any(len(values) != 1 for of in labels.values()
                for values in of.values())
  for split, of in labels.items():
    (out / f'{split}.json').write_text(json.dumps(of), encoding='utf-8')
  prediction, measure = 'multiclass', 'top1_acc'
  if several:
    prediction, measure = 'multilabel', 'mAP'
  (out / 'task_metadata.json').write_text(json.dumps({
      'task_name': name, 'version': 'xares', 'embedding_type': 'scene',
      'prediction_type': prediction, 'split_mode': mode,
      'splits': list(labels), 'sample_duration': None,
      'evaluation': [measure], 'label_key': key}), encoding='utf-8')


def split_mode(folder: pathlib.Path, labels: dict[str, dict[str, list[str]]],
               out: pathlib.Path, rate: int) -> str:
  """Returns the split_mode; completes splits as X-ARES does.

  Where there is no validation split X-ARES validates on the test split, and
  the other way round.

  Raises:
    ValueError: no training or no test split, or fewer than three folds.
  """
  if all(split.startswith('fold') for split in labels):
    if len(labels) < 3:
      raise ValueError(f'{folder}: tars of {len(labels)} folds, expected 3 or '
                       'more')
    return 'new_split_kfold'
  for missing, instead in (('test', 'valid'), ('valid', 'test')):
    if missing not in labels and instead in labels:
      labels[missing] = labels[instead]
      # Hard links: the second split takes no space.
      shutil.copytree(out / str(rate) / instead, out / str(rate) / missing,
                      copy_function=os.link)
  if sorted(labels) != ['test', 'train', 'valid']:
    raise ValueError(f'{folder}: tars of {", ".join(sorted(labels))}, expected '
                     'train and test (and valid), or folds')
  return 'trainvaltest'


def clips(path: pathlib.Path
          ) -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
  """Yields (name, suffix, sound file, its .json) of the clips of a tar.

  Raises:
    ValueError: a damaged tar, or a clip without one of the two; names it.
  """
  waiting: dict[str, dict[str, bytes]] = {}
  try:
    with tarfile.open(path) as tar:
      for member in tar:
        if not member.isfile():
          continue
        # WebDataset: a clip's name ends at the first dot of the last part.
        parent, _, last = member.name.rpartition('/')
        stem, _, ending = last.partition('.')
        name = f'{parent}/{stem}'.strip('/').replace('/', '_')
        file = tar.extractfile(member)
        assert file is not None  # It is a file.
        # The sound and the .json of a clip come in either order. One clip at a
        # time is in memory where they stand side by side, as WebDataset writes
        # them.
        parts = waiting.setdefault(name, {})
        parts[f'.{ending.lower()}'] = file.read()
        sound = [s for s in parts if s in SOUNDS]
        if sound and '.json' in parts:
          yield name, sound[0], parts[sound[0]], json.loads(parts['.json'])
          waiting[name] = {}
  except (tarfile.TarError, EOFError, ValueError) as error:
    raise ValueError(f'{path}: {type(error).__name__}: {error}') from None
  lone = [name for name, parts in waiting.items() if parts]
  if lone:
    raise ValueError(f'{path}: {lone[0]} lacks its sound file or its .json')


def label_key(path: pathlib.Path, clip: str, about: Mapping[str, Any]) -> str:
  """Returns the key of the label in a clip's .json.

  Raises:
    ValueError: none is known; names those that it has.
  """
  for key in KEYS:
    if isinstance(about, dict) and key in about:
      return key
  listed = 'no dictionary'
  if isinstance(about, dict):
    listed = ', '.join(map(str, about))
  raise ValueError(f'{path}: {clip}.json has {listed}: no label among '
                   f'{", ".join(KEYS)} (tasks of frames, captions and '
                   'transcripts are not read)')


def label_of(path: pathlib.Path, clip: str, about: Mapping[str, Any],
             key: str) -> list[str]:
  """Returns the labels of a clip.

  Raises:
    ValueError: it has none, or other things than words and numbers.
  """
  value = about.get(key)
  if isinstance(value, str):
    value = value.split(SEVERAL)
  elif isinstance(value, (bool, int)):
    value = [value]
  if not isinstance(value, list) or not all(
      isinstance(x, (str, bool, int)) for x in value):
    raise ValueError(f'{path}: {clip}.json: {key} is {value!r}, expected a '
                     'word or a number')
  return [str(x).strip() for x in value]


def read_rate(path: pathlib.Path, clip: str, sound: bytes) -> int:
  """Returns the sampling rate of a sound file, Hz."""
  try:
    return int(soundfile.info(io.BytesIO(sound)).samplerate)
  except soundfile.LibsndfileError as error:
    raise ValueError(f'{path}: {clip}: {error}') from None


def write_clip(path: pathlib.Path, place: pathlib.Path, suffix: str,
               sound: bytes, rate: int) -> None:
  """Writes a clip, mono at a rate: as it is where it can be, else as .flac.

  Args:
    path: of the tar, for messages.
    place: of the clip, without a suffix.
    suffix: of the sound file.
    sound: the sound file.
    rate: Hz.

  Raises:
    ValueError: it cannot be decoded.
  """
  try:
    info = soundfile.info(io.BytesIO(sound))
    # Copied where possible: writing it again could only lose precision.
    if (suffix in AS_THEY_ARE and info.channels == 1
        and info.samplerate == rate):
      place.with_name(place.name + suffix).write_bytes(sound)
      return
    wave_SC, own = soundfile.read(io.BytesIO(sound), dtype='float32',
                                  always_2d=True)
  except soundfile.LibsndfileError as error:
    raise ValueError(f'{path}: {place.name}: {error}') from None
  wave_S = wave_SC.mean(1)
  if own != rate:
    wave_S = soxr.resample(wave_S, own, rate, 'HQ')
  # Resampling overshoots beyond 1.
  soundfile.write(place.with_name(place.name + '.flac'),
                  np.clip(wave_S, -1, 1), rate, subtype='PCM_16')


def quoted(label: str) -> str:
  """Returns a label as a field of a .csv."""
  if re.search(r'[",\n]', label):
    return '"' + label.replace('"', '""') + '"'
  return label
