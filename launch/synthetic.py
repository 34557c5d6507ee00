"""The synthetic dataset of a config without a corpus: sounds, or pictures."""

import os
import pathlib
from typing import Any

from audiorank import files
from audiorank import images
from audiorank import prepare
from audiorank import records
from audiorank import synth


def dataset(folder: str | os.PathLike[str], config: Any) -> tuple[str, str]:
  """Writes (or finishes) it; returns the paths of its (corpus, tasks).

  Args:
    folder: where; datasets of other settings lie beside this one.
    config: of a run.

  Raises:
    ValueError: pictures, without the package that has them.
  """
  if config.model.front == 'pixels':
    return images.make(pathlib.Path(folder) / 'digits')
  world = config.data.world
  folder = pathlib.Path(folder) / files.digest(records.plain(world))
  synth.write_audio(folder / 'audio', world.hours, world.seed)
  prepare.run(folder / 'audio', folder / 'corpus')
  synth.write_tasks(
      folder, world.seed,
      clips_per_task=(world.train_clips, world.valid_clips, world.test_clips),
      names=[name for name in world.tasks.split(',') if name] or None)
  return str(folder / 'corpus'), str(folder / 'tasks')
