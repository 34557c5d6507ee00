"""The embedded default world, written where a sweep is."""

import pathlib

from audiorank import prepare
from audiorank import synth


def make(folder, world):
  """Writes (or finishes) the default world; returns (corpus, tasks) paths.

  Args:
    folder: where.
    world: the data.world part of a config: seed, hours, clips_per_task, names.
  """
  folder = pathlib.Path(folder)
  synth.write_audio(folder / 'audio', world.hours, world.seed)
  prepare.run(folder / 'audio', folder / 'corpus')
  clips = world.clips_per_task
  synth.write_tasks(folder, world.seed,
                    clips_per_task=(clips // 2, clips // 5,
                                    clips - clips // 2 - clips // 5),
                    names=[n for n in world.tasks.split(',') if n])
  return str(folder / 'corpus'), str(folder / 'tasks')
