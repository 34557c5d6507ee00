"""The training curve: rows of metrics.jsonl, and steps that are not finite.

A step's numbers are read when the next one is on its way, so that reading
them holds nothing up, and before they are saved, or a resumed run would lack
them. Nothing that is not finite is ever saved.
"""

import math
import pathlib

import jax

from audiorank import data
from audiorank import program
from audiorank import records
from audiorank import trackers


class Diverged(Exception):
  """Loss, gradient or parameters are not finite.

  The message names step and clips; `about` has them as JSON material.
  """

  def __init__(self, message, about):
    super().__init__(message)
    self.about = about


class Curve:
  """Writes the curve of one run, from a step on.

  Args:
    workdir: the run's folder.
    config: frozen config.
    subset: the corpus trained on, for the names of clips.
    step: the step that the run starts from.
    main: whether this process keeps the books.
  """

  def __init__(self, workdir, config, subset, step, main):
    self.workdir, self.config, self.subset = workdir, config, subset
    self.main, self.last = main, {}
    self.recent, self.pending, self.file = [], None, None
    self.skipped = skipped(workdir)
    if main:
      self.file = open(workdir / 'metrics.jsonl', 'a', encoding='utf-8')
      self.trackers = trackers.Several(workdir, config, step)

  def add(self, step, got, speed, at=None):
    """Takes a step's numbers, on their devices, and writes what waited.

    Args:
      step: the number of steps done.
      got: {name: scalar}; of several steps' numbers {name: vector}.
      speed: called with the step of a row; gauges.Gauge.row.
      at: which of the vectors' entries are this step's.

    Returns:
      the row that was written, or None.

    Raises:
      Diverged: a step up to the row is not finite.
    """
    row = self.write()
    got = got, at
    self.recent.append((step, got))
    t = self.config.train
    if step % t.log_every == 0 or step == t.steps:
      self.pending = step, got, speed(step)
    return row

  def write(self):
    """Writes the row that waits, if there is one, and returns it."""
    if self.pending is None:
      return None
    step, got, speed = self.pending
    self.pending = None
    self.examine(step)
    if step in self.skipped:
      return None
    row = {'step': step, **floats(got), **speed}
    self.put(row)
    return row

  def flush(self):
    """Looks at every step so far and writes what waits: before a save."""
    row = self.write()
    if self.recent:
      self.examine(self.recent[-1][0])
    return row

  def reading(self, step, fields):
    """Writes the row of a reading of RankMe."""
    self.put({'step': step, 'rank': fields['rank']['value'],
              'rank_center': fields['rank_center']['value'],
              'valid_loss': fields.get('valid_loss'),
              'alarms': fields['alarms']})

  def put(self, row):
    """Writes one row and passes its numbers to the trackers."""
    if not self.main:
      return
    self.file.write(records.line(row))
    self.file.flush()
    self.last.update(row)
    self.trackers.log(row['step'], {k: v for k, v in row.items()
                                    if k != 'step'})

  def examine(self, upto):
    """Looks at the steps up to one, and forgets them.

    Raises:
      Diverged: one is not finite, and no (more) steps may be skipped.
    """
    done = [r for r in self.recent if r[0] <= upto]
    self.recent = [r for r in self.recent if r[0] > upto]
    # What is not finite stays so, unless its update was left out.
    if not done or (not self.config.train.skip and finite(done[-1][1])):
      return
    for step, got in done:
      if not finite(got):
        self.accident(step, floats(got))

  def accident(self, step, row):
    """Notes a step as skipped, or raises Diverged."""
    names = data.clip_names(
        self.subset, batch=self.config.train.batch,
        samples=program.crop_samples(self.config.data.crop_seconds),
        seed=self.config.data.seed, step=step - 1)
    why = (f"loss {row['loss']} at step {step}, gradient norm "
           f"{row['grad_norm']}, parameter norm {row['param_norm']}")
    most = self.config.train.skip
    if not row.get('skipped') or len(self.skipped) >= most:
      counted = f'; train.skip {most} are used up' if most else ''
      raise Diverged(
          f"{why}, clips {', '.join(names[:4])} ...{counted}",
          {'step': step, 'last_good_step': step - 1, 'clips': names,
           **{k: str(row[k]) for k in ('loss', 'grad_norm', 'param_norm')}})
    self.skipped.append(step)
    self.put({'step': step, 'skipped': 1., 'why': why, 'clips': names})
    if self.main:
      about = records.read_json(records.path(self.workdir, 'run', 0))
      records.write(self.workdir, 'run', 0,
                    {**about, 'skipped': self.skipped})

  def close(self):
    """Ends the file and the trackers."""
    if self.main:
      self.file.close()
      self.trackers.finish(self.last)


def floats(got):
  """Returns a step's numbers, (got, at) of `Curve.add`, as floats."""
  numbers, at = got
  return {k: float(v if at is None else v[at])
          for k, v in jax.device_get(numbers).items()}


def finite(got):
  """Returns whether all of a step's numbers are finite.

  The loss tells of the parameters before the step, their norm of those after
  it.
  """
  return all(math.isfinite(v) for v in floats(got).values())


def skipped(workdir):
  """Returns the steps of metrics.jsonl whose updates were left out."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  rows = records.read_lines(path)
  return [row['step'] for row in rows if 'why' in row]
