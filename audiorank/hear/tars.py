"""Reads the tars of X-ARES tasks as they are, as HEAR tasks.

A task of X-ARES is a folder of WebDataset tars with a sound file and a .json of
each clip. They are unpacked once, into the cache:

  <cache>/tars/<name>-<digest>/    a HEAR task folder: see tasks.py

The split is read from a tar's name (fold, train, valid or dev, test or eval),
the label from the first known key of a clip's .json. Tasks of frames, captions
or transcripts have no such label and are refused.

Five tasks of X-ARES are cut into crops (CROPS). As in xares 0.1.3 a remainder
is left out, and a shorter clip is padded with silence. It embeds all crops,
but gives those of a clip in one batch one name and reads back the first: the
first crop of a clip, and one that begins a batch of 16. The same are taken
here, so that scores are those of xares.
"""

from collections.abc import Iterable
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
from audiorank.hear import tasks

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
# Seconds of the crops, from the task files of xares 0.1.3.
CROPS = {'fsd50k': 10, 'freemusicarchive': 10, 'librispeechmalefemale': 5,
         'voxceleb1': 6, 'voxlingua33': 10}
BATCH = 16  # Crops that xares embeds at once.
# Weights of the tasks in X-ARES' mean, from its task files (eval_weight): for
# most of them the number of test clips.
WEIGHTS = {'asvspoof2015': 2000, 'cremad': 1116, 'esc50': 400,
           'finger_snap': 5000, 'fluentspeechcommands': 2000,
           'freemusicarchive': 800, 'fsd50k': 2000, 'fsdkaggle2018': 1600,
           'gtzan_genre': 100, 'inside_outside_car': 5000,
           'key_scratching': 5000, 'libricount': 1144,
           'librispeechmalefemale': 2620, 'liveenv': 5000,
           'nsynthinstument': 2000, 'ravdess': 360, 'speechcommandsv1': 2000,
           'subway_broadcast': 5000, 'urbansound8k': 873,
           'vocalimitations': 1867, 'vocalsound': 2000, 'voxceleb1': 2000,
           'voxlingua33': 1609}


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
  stats: list[Any] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns)
                      for p in paths]
  # Not where there are none: tasks of older versions are still current.
  if name in CROPS:
    stats.append(('crop', CROPS[name], BATCH))
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
  key, rate, crop = '', 0, CROPS.get(name, 0)
  parents: dict[str, str] = {}  # Of crops.
  # The training clips first: the task has their sampling rate.
  for split in sorted(by_split, key=lambda s: (s != 'train', s)):
    labels[split] = {}
    known: set[str] = set()
    crops = 0
    for path in by_split[split]:
      for clip, suffix, sound, about in clips(path):
        # One key for the whole task, that of its first clip.
        key = key or label_key(path, clip, about)
        values = label_of(path, clip, about, key)
        if clip in known:
          raise ValueError(f'{path}: two clips are called {clip}')
        known.add(clip)
        # The rate of the first clip; clips of other rates are resampled.
        rate = rate or read_rate(path, clip, sound)
        place = out / str(rate) / split
        place.mkdir(parents=True, exist_ok=True)
        if crop:
          pieces, count = write_crops(path, place / clip, sound, rate, crop,
                                      crops)
          crops += count
          parents.update({f'{piece}.wav': clip for piece in pieces})
        else:
          pieces = [clip]
          write_clip(path, place / clip, suffix, sound, rate)
        labels[split].update({f'{piece}.wav': values for piece in pieces})
  mode = split_mode(folder, labels, out, rate)
  if parents:
    # Crops of a clip resemble each other: the intervals of scores need to know.
    write_table(out / tasks.PROVENANCE, 'file,group', parents.items())
  for split, of in labels.items():
    (out / f'{split}.json').write_text(json.dumps(of), encoding='utf-8')
  prediction, measure = write_vocabulary(out, labels)
  (out / tasks.METADATA).write_text(json.dumps({
      'task_name': name, 'version': 'xares', 'embedding_type': 'scene',
      'prediction_type': prediction, 'split_mode': mode,
      'splits': list(labels), 'sample_duration': None,
      'evaluation': [measure], 'label_key': key, 'crop_seconds': crop or None,
      'weight': WEIGHTS.get(name)}), encoding='utf-8')


def write_vocabulary(out: pathlib.Path,
                     labels: Mapping[str, Mapping[str, list[str]]]
                     ) -> tuple[str, str]:
  """Writes the labels of a task; returns (prediction type, measure)."""
  several = [values for of in labels.values() for values in of.values()]
  vocabulary = sorted({value for values in several for value in values})
  write_table(out / tasks.VOCABULARY, 'idx,label', enumerate(vocabulary))
  # One clip with several labels, or none, makes a task multilabel.
  if any(len(values) != 1 for values in several):
    return 'multilabel', 'mAP'
  return 'multiclass', 'top1_acc'


def write_table(path: pathlib.Path, header: str,
                rows: Iterable[tuple[Any, Any]]) -> None:
  """Writes a .csv of two columns."""
  lines = [header, *(f'{quoted(str(x))},{quoted(str(y))}' for x, y in rows)]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


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
  except soundfile.LibsndfileError as error:
    raise ValueError(f'{path}: {place.name}: {error}') from None
  soundfile.write(place.with_name(place.name + '.flac'),
                  decoded(path, place.name, sound, rate), rate,
                  subtype='PCM_16')


def write_crops(path: pathlib.Path, place: pathlib.Path, sound: bytes,
                rate: int, seconds: float, before: int
                ) -> tuple[list[str], int]:
  """Writes the crops of a clip that xares scores, as .flac.

  Args:
    path, place, sound, rate: as for `write_clip`.
    seconds: of a crop.
    before: crops of the split before this clip.

  Returns:
    the names of the crops, and the number of all crops of the clip.

  Raises:
    ValueError: it cannot be decoded.
  """
  wave_S, size = decoded(path, place.name, sound, rate), int(seconds * rate)
  if len(wave_S) < size:
    wave_S = np.pad(wave_S, (0, size - len(wave_S)))
  names, count = [], len(wave_S) // size
  for i in range(count):
    # The module's docstring says why only these.
    if i and (before + i) % BATCH:
      continue
    names.append(f'{place.name}-{i}')
    soundfile.write(place.with_name(f'{names[-1]}.flac'),
                    wave_S[i * size:(i + 1) * size], rate, subtype='PCM_16')
  return names, count


def decoded(path: pathlib.Path, clip: str, sound: bytes,
            rate: int) -> np.ndarray:
  """Returns wave_S of a sound file, mono, at a rate.

  Args:
    path: of the tar, for messages.
    clip: its name, for messages.
    sound: the sound file.
    rate: Hz.

  Raises:
    ValueError: it cannot be decoded.
  """
  try:
    wave_SC, own = soundfile.read(io.BytesIO(sound), dtype='float32',
                                  always_2d=True)
  except soundfile.LibsndfileError as error:
    raise ValueError(f'{path}: {clip}: {error}') from None
  wave_S = wave_SC.mean(1)
  if own != rate:
    wave_S = soxr.resample(wave_S, own, rate, 'HQ')
  return np.clip(wave_S, -1, 1)  # Resampling overshoots beyond 1.


def quoted(label: str) -> str:
  """Returns a label as a field of a .csv."""
  if re.search(r'[",\n]', label):
    return '"' + label.replace('"', '""') + '"'
  return label
