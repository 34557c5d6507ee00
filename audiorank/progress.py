"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

import tqdm


class Bar:
  """Counts steps; shows rate, time left and the latest note.

  Args:
    total: steps in all.
    done: steps done before this process started.
    title: what is being done.
    every: seconds between lines where standard error is no terminal.
  """

  def __init__(self, total: int, done: int, title: str, every: float = 15.):
    self.total, self.first, self.at = total, done, done
    self.title, self.every = title, every
    self.start = self.printed = time.monotonic()
    self.text = ''
    self.bar = None
    if sys.stderr.isatty():
      self.bar = tqdm.tqdm(total=total, initial=done, desc=title,
                           dynamic_ncols=True, leave=False)

  def note(self, text: str) -> None:
    """Shows a text beside the bar from now on."""
    self.text = text
    if self.bar:
      self.bar.set_postfix_str(text)

  def step(self, n: int = 1) -> None:
    """Counts n steps."""
    self.at += n
    if self.bar:
      self.bar.update(n)
      return
    # A log file gets a line now and then.
    now = time.monotonic()
    if now - self.printed <= self.every:
      return
    self.printed = now
    rate = (self.at - self.first) / (now - self.start)
    left = (self.total - self.at) / rate if rate else float('inf')
    print(f'{self.title}: {self.at}/{self.total}, {rate:.3g}/s, '
          f'{clock(left)} left, {self.text}', file=sys.stderr, flush=True)

  def close(self) -> None:
    """Removes the bar."""
    if self.bar:
      self.bar.close()


class Status:
  """What a loop of work tells the process it runs in; here: nobody listens.

  Each call says one thing, and only `busy` and `idle` may change what a
  process does. `train.fit` and `evaluate.run` make them; `launch.worker`
  listens.
  """

  def report(self, doing: str, step: int | None = None,
             steps: int | None = None, force: bool = False) -> None:
    """Says what is being done, for people.

    Args:
      doing: such as 'training' or 'scoring esc50'.
      step, steps: how far training is; None keeps what was said last.
      force: a change that must not be passed over, however often it reports.
    """

  def busy(self) -> None:
    """From here on, ending the process at once would lose work."""

  def idle(self) -> None:
    """From here on, all work is saved: the process may end at once."""


def clock(seconds: float) -> str:
  """Returns seconds as 2:03, 1:02:03, '12 days' or '?'."""
  if not 0 <= seconds < 1e12:
    return '?'
  if seconds >= 2 * 86400:
    return f'{seconds / 86400:,.0f} days'
  seconds = int(round(seconds))
  hours, minutes = seconds // 3600, seconds % 3600 // 60
  if hours:
    return f'{hours}:{minutes:02}:{seconds % 60:02}'
  return f'{minutes}:{seconds % 60:02}'
