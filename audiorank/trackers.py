"""Where a training curve is shown besides metrics.jsonl: nowhere, by default.

A tracker is three functions: log(step, row) takes the numbers of a step,
summary(row) those of the whole run, finish() ends it. What it raises is
warned of once and never stops a run; one that fails FAILURES times in a row
is left alone.

  tensorboard   tensorboardX, into <workdir>/tensorboard
  wandb         Weights & Biases; WANDB_MODE=offline writes to <workdir>/wandb
  trackio       a local SQLite file, no account
"""

from collections.abc import Callable
import math
import pathlib
from typing import NamedTuple

from absl import logging

from audiorank import records

PROJECT = 'audiorank'
FAILURES = 10


class Tracker(NamedTuple):
  """One place where a curve is shown."""
  log: Callable  # (step, {name: number})
  summary: Callable  # ({name: number})
  finish: Callable  # ()


def tensorboard(workdir, config, step):
  """Event files; what a killed process wrote past `step` is hidden."""
  import tensorboardX
  writer = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step)

  def log(step, row):
    for name, value in row.items():
      writer.add_scalar(name, value, step)

  def summary(row):
    for name, value in row.items():
      writer.add_scalar(f'summary/{name}', value, config.train.steps)

  return Tracker(log, summary, writer.close)


def wandb(workdir, config, step):
  """A run of the project PROJECT, of the same id whenever it is resumed."""
  del step  # It keeps what it was told first.
  import wandb as library
  run = library.init(
      project=PROJECT, id=records.run_id(config), name=workdir.name,
      dir=str(workdir), config=records.plain(config), resume='allow')
  return Tracker(lambda step, row: run.log(row, step=step),
                 run.summary.update, run.finish)


def trackio(workdir, config, step):
  """A run of the project PROJECT, named by its id."""
  del workdir, step
  import trackio as library
  run = library.init(
      project=PROJECT, name=records.run_id(config), resume='allow',
      config=records.plain(config), embed=False)
  return Tracker(lambda step, row: run.log(row, step=step),
                 lambda row: run.log({f'summary/{k}': v
                                      for k, v in row.items()}),
                 run.finish)


KINDS = {'tensorboard': tensorboard, 'wandb': wandb, 'trackio': trackio}


def names(config):
  """Returns the trackers that a config names.

  Raises:
    ValueError: one that is not known; names those there are.
  """
  found = [name for name in config.track.split(',') if name]
  for name in found:
    if name not in KINDS:
      raise ValueError(f'track {name!r}: expected some of {", ".join(KINDS)}, '
                       'separated by commas')
  return found


def numbers(row):
  """Returns the finite numbers of a row as floats."""
  return {k: float(v) for k, v in row.items()
          if isinstance(v, (int, float)) and math.isfinite(v)}


class Several:
  """The trackers of a run, none of which can stop it.

  Args:
    workdir: the run's folder.
    config: frozen config.
    step: the step that the run starts from.
  """

  def __init__(self, workdir, config, step):
    self.open, self.failures = {}, {}
    for name in names(config):
      self.failures[name] = 0
      made = self.call(name, KINDS[name], pathlib.Path(workdir), config, step)
      if made is not None:
        self.open[name] = made

  def call(self, name, function, *arguments):
    """Calls a tracker's function; returns what it does, or None."""
    try:
      out = function(*arguments)
      self.failures[name] = 0
      return out
    except Exception as error:  # Whatever a library of others may raise.
      self.failures[name] += 1
      if self.failures[name] == 1:
        logging.warning('tracker %s: %s: %s; the run goes on without it', name,
                        type(error).__name__, error)

  def log(self, step, row):
    """Passes the numbers of a row on."""
    for name, tracker in list(self.open.items()):
      self.call(name, tracker.log, step, numbers(row))
      if self.failures[name] >= FAILURES:
        del self.open[name]

  def finish(self, row):
    """Passes the numbers of the whole run on and ends every tracker."""
    for name, tracker in self.open.items():
      self.call(name, tracker.summary, numbers(row))
      self.call(name, tracker.finish)
    self.open = {}
