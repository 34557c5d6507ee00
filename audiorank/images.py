"""Pictures encoded as waves: another modality through the same code.

A picture is cut into square patches, row by row. Patch t, flattened, becomes
the samples from 160 t of a 16-bit wave at 16 kHz; silence follows up to the
next. With `model.frontend = 'pixels'` (audio.pixels) the model's tokens are
exactly these patches, so a masked autoencoder of waves is one of pictures.
Corpus, tasks, training, RankMe, probes and laws need no change.

The built-in pictures are scikit-learn's digits: 1,797 scans of 8 x 8 pixels
with 17 levels, from the UCI machine learning repository (E. Alpaydin and
C. Kaynak, Optical Recognition of Handwritten Digits, 1998).

Shapes: N pictures, Y rows, X columns, T patches, P pixels of a patch, S
samples.
"""

import json
import os
import shutil

import numpy as np

from audiorank import audio
from audiorank import config as config_lib
from audiorank import decode
from audiorank import files
from audiorank import prepare

RATE = config_lib.RATE
SIDE = 2  # Pixels along a side of a digit's patch.
# (first, after the last) picture, in the order of the data set.
SPLITS = {'train': (0, 1000), 'valid': (1000, 1297), 'test': (1297, 1797)}
TURNS = 4  # Classes of the second task: quarter turns of a digit.


def samples(patches: int, side: int) -> int:
  """Returns the samples of a wave that encodes so many patches."""
  # No silence after the last patch.
  return (patches - 1) * audio.HOP + side * side


def wave(picture_YX: np.ndarray, side: int) -> np.ndarray:
  """Returns wave_S int16 that encodes a picture.

  Args:
    picture_YX: from 0 (sample -32767) to 1 (32767).
    side: of a patch, in pixels.

  Raises:
    ValueError: the picture is not of whole patches, patches have more than 160
      pixels, or values are outside [0, 1].
  """
  picture_YX = np.asarray(picture_YX, np.float64)
  if picture_YX.ndim != 2 or 0 in picture_YX.shape or any(
      n % side for n in picture_YX.shape):
    raise ValueError(f'a picture of shape {picture_YX.shape}: expected two '
                     f'multiples of {side}')
  if side * side > audio.HOP:
    raise ValueError(f'patches of {side * side} pixels: expected at most '
                     f'{audio.HOP}')
  # Written so that NaN, for which comparisons are False, is refused too.
  if not (picture_YX.min() >= 0 and picture_YX.max() <= 1):
    raise ValueError(f'a picture from {picture_YX.min():g} to '
                     f'{picture_YX.max():g}: expected 0 to 1')
  # [rows of patches, Y in a patch, columns of patches, X in a patch] becomes
  # one row per patch.
  Y, X = picture_YX.shape
  patches_TP = picture_YX.reshape(Y // side, side, X // side, side).transpose(
      0, 2, 1, 3).reshape(-1, side * side)
  T, P = patches_TP.shape
  blocks = np.zeros((T, audio.HOP))
  blocks[:, :P] = patches_TP * 2 - 1
  wave_S = blocks.reshape(-1)[:samples(T, side)]
  return np.rint(wave_S * 32767).astype(np.int16)


def write_corpus(out: str | os.PathLike, pictures_NYX: np.ndarray, side: int,
                 about: dict) -> None:
  """Writes pictures as a prepared corpus, one recording per picture.

  Args:
    out: folder; see prepare.write.
    pictures_NYX: see `wave`.
    side: of a patch.
    about: dictionary of scalars that describes the pictures.
  """
  prepare.write(out, (
      (f'{i:06d}.wav', f'{i:06d}', '', wave(picture_YX, side))
      for i, picture_YX in enumerate(pictures_NYX)), {**about, 'side': side})


def write_task(folder: str | os.PathLike, name: str, splits: dict,
               side: int) -> None:
  """Writes a task of labelled pictures in HEAR's layout, whole or not at all.

  Args:
    folder: of the task; an existing one is left as it is.
    name: of the task.
    splits: {'train' | 'valid' | 'test': (pictures_NYX, N labels)}.
    side: of a patch.
  """
  folder = files.on_disk(folder)
  if folder.exists():
    return
  # Written beside, then renamed: a folder under this name is complete.
  part = folder.parent / f'.{folder.name}.{os.getpid()}'
  try:
    # The clips and labels of every split.
    classes = set()
    for split, (pictures_NYX, labels) in splits.items():
      (part / str(RATE) / split).mkdir(parents=True)
      labels_of = {}
      for i, (picture_YX, label) in enumerate(
          zip(pictures_NYX, labels, strict=True)):
        wave_S = wave(picture_YX, side)
        decode.write(part / str(RATE) / split / f'{i:05d}.wav', wave_S, RATE)
        labels_of[f'{i:05d}.wav'] = [label]
        classes.add(label)
      (part / f'{split}.json').write_text(
          json.dumps(labels_of), encoding='utf-8')
    # What hear.tasks.load reads besides: the classes and the task's settings.
    rows = ''.join(f'{i},{c}\n' for i, c in enumerate(sorted(classes)))
    (part / 'labelvocabulary.csv').write_text(f'idx,label\n{rows}',
                                              encoding='utf-8')
    (part / 'task_metadata.json').write_text(json.dumps({
        'task_name': name, 'version': 'v1', 'mode': 'full',
        'embedding_type': 'scene', 'prediction_type': 'multiclass',
        'split_mode': 'trainvaltest', 'splits': list(splits),
        'sample_duration': len(wave_S) / RATE,
        'evaluation': ['top1_acc', 'mAP']}), encoding='utf-8')
    os.replace(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def digits() -> tuple[np.ndarray, list[str]]:
  """Returns (pictures_NYX in [0, 1], N labels) of scikit-learn's digits.

  Raises:
    ValueError: scikit-learn is not installed.
  """
  try:
    from sklearn import datasets
  except ModuleNotFoundError:
    raise ValueError("the digits need scikit-learn (pip install "
                     "'audiorank[images]')") from None
  digits_set = datasets.load_digits()
  # Pixels are counts from 0 to 16.
  return digits_set.images / 16., [f'digit_{n}' for n in digits_set.target]


def make(folder: str | os.PathLike) -> tuple[str, str]:
  """Writes the digits' corpus and tasks; returns the two folders' paths.

  The corpus has the pictures of the training split only. There are two tasks:
  `digit` asks which digit it is, `turn` by how many quarters it was turned.
  What is already there is kept.

  Args:
    folder: where to write.

  Raises:
    ValueError: scikit-learn is not installed.
  """
  folder = files.on_disk(folder)
  pictures_NYX, labels = digits()
  first, last = SPLITS['train']
  write_corpus(folder / 'corpus', pictures_NYX[first:last], SIDE,
               {'pictures': 'scikit-learn digits'})
  tasks = folder / 'tasks'
  tasks.mkdir(exist_ok=True)
  digit, turn = {}, {}
  for split, (first, last) in SPLITS.items():
    part_NYX = pictures_NYX[first:last]
    digit[split] = part_NYX, labels[first:last]
    # In turn rather than at random: classes are balanced in every split.
    quarters = [i % TURNS for i in range(len(part_NYX))]
    turn[split] = (np.stack([np.rot90(p, k) for p, k in zip(
        part_NYX, quarters)]), [f'turn_{k}' for k in quarters])
  write_task(tasks / 'digit-v1-full', 'digit', digit, SIDE)
  write_task(tasks / 'turn-v1-full', 'turn', turn, SIDE)
  return str(folder / 'corpus'), str(tasks)
