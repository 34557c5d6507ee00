"""The embedded defaults, written where a sweep is: sounds, or pictures."""

import pathlib

from audiorank import images
from audiorank import prepare
from audiorank import records
from audiorank import synth


def default(folder, config):
  """Returns (corpus, tasks) paths of what a config without a corpus is of.

  Raises:
    ValueError: pictures, without the package that has them.
  """
  if config.model.front == 'pixels':
    return images.make(pathlib.Path(folder) / 'digits')
  return make(folder, config.data.world)


def make(folder, world):
  """Writes (or finishes) the default world; returns (corpus, tasks) paths.

  Args:
    folder: where; other settings of the world lie beside these.
    world: the data.world part of a config.
  """
  folder = pathlib.Path(folder) / records.digest(records.plain(world))
  synth.write_audio(folder / 'audio', world.hours, world.seed)
  prepare.run(folder / 'audio', folder / 'corpus')
  synth.write_tasks(
      folder, world.seed,
      clips_per_task=(world.train_clips, world.valid_clips, world.test_clips),
      names=[n for n in world.tasks.split(',') if n] or None)
  return str(folder / 'corpus'), str(folder / 'tasks')
