"""The synthetic dataset of a config without a corpus: sounds, or pictures."""

import os
import pathlib
from typing import Any

from audiorank import config as config_lib
from audiorank import files
from audiorank import images
from audiorank import prepare
from audiorank import synth


def dataset(folder: str | os.PathLike[str], config: Any) -> tuple[str, str]:
  """Writes (or finishes) it; returns the paths of its (corpus, tasks).

  Args:
    folder: where; datasets of other settings lie beside this one.
    config: of a run.

  Raises:
    ValueError: pictures, without the package that has them; more clips for
      RankMe than it will have.
  """
  world, name = config.data.world, 'digits'
  if config.model.frontend != 'pixels':
    check_clips(config)
    name = files.digest(
        config_lib.hashed(config_lib.plain(config))['data']['world'])
  folder = files.path(folder) / name
  there = str(folder / 'corpus'), str(folder / 'tasks')
  # corpus.json is sent last, so a corpus that has it is whole.
  if files.is_on_bucket(folder) and (folder / 'corpus/corpus.json').exists():
    return there
  here = files.beside(folder)
  if config.model.frontend == 'pixels':
    images.make(here)
  else:
    write_sounds(here, world)
  if files.is_on_bucket(folder):
    # The corpus last: where it is whole, all is.
    files.send(here / 'tasks', folder / 'tasks')
    files.send(here / 'corpus', folder / 'corpus', last='corpus.json')
  return there


def check_clips(config: Any) -> None:
  """Raises ValueError, before any sound is written, for too many clips.

  Args:
    config: of a run. Recordings are held out as well, so some numbers just
      below what is allowed here are refused once the sounds are there.
  """
  world, monitor = config.data.world, config.monitor
  clips = synth.clips(world.hours, world.seed, config_lib.crop_samples(
      monitor.crop_seconds))
  if monitor.clips > clips:
    raise ValueError(
        f'monitor.clips {monitor.clips}: data.world.hours {world.hours:g} of '
        f'synthetic sound have {clips} clips of {monitor.crop_seconds:g} s, '
        'some of which are held out: expected fewer, or more hours')


def write_sounds(folder: pathlib.Path, world: Any) -> None:
  """Writes (or finishes) the corpus and the tasks of config.data.world."""
  # Each of these goes on where it was interrupted.
  synth.write_audio(folder / 'audio', world.hours, world.seed)
  prepare.run(folder / 'audio', folder / 'corpus')
  synth.write_tasks(
      folder, world.seed,
      clips_per_task=(world.train_clips, world.valid_clips, world.test_clips),
      names=list(world.tasks) or None)
