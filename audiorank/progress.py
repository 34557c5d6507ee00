"""Progress of long work: a bar on a terminal, occasional lines in a log."""

import sys
import time

import tqdm


class Bar:
  """Counts steps and shows the rate, the time left and the latest note.

  Args:
    total: number of all steps.
    done: steps done before this process started.
    title: what is being done.
    every: seconds between lines if standard error is no terminal.
  """

  def __init__(self, total: int, done: int, title: str, every: float = 15.):
    self.total, self.first, self.at = total, done, done
    self.title, self.every = title, every
    # Monotonic: the clock of the day may jump.
    self.start = self.printed = time.monotonic()
    self.text = ''
    # On standard error, so that what a command prints can be piped.
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
    # A bar would fill a log file, which gets a line every 15 seconds.
    now = time.monotonic()
    if now - self.printed <= self.every:
      return
    self.printed = now
    # Steps of earlier processes do not count for the rate.
    rate = (self.at - self.first) / (now - self.start)
    left = float('inf')
    if rate:
      left = (self.total - self.at) / rate
    print(f'{self.title}: {self.at}/{self.total}, {rate:.3g}/s, '
          f'{clock(left)} left, {self.text}', file=sys.stderr, flush=True)

  def close(self) -> None:
    """Removes the bar."""
    if self.bar:
      self.bar.close()


class Status:
  """How a loop of work informs the process that it runs in.

  `train.fit` and `evaluate.run` call these methods, and `launch.worker`
  implements them; here they do nothing. `report` is for people. Only `busy`
  and `idle` may change what a process does.
  """

  def report(self, doing: str, step: int | None = None,
             steps: int | None = None, force: bool = False) -> None:
    """Reports what is being done, for people.

    Args:
      doing: such as 'training' or 'scoring esc50'.
      step, steps: how far training is; None keeps the last values.
      force: show this report even if the last one is recent.
    """

  def busy(self) -> None:
    """From here on, ending the process at once would lose work."""

  def idle(self) -> None:
    """From here on, all work is saved: the process may end at once."""


def clock(seconds: float) -> str:
  """Returns seconds as 2:03, 1:02:03, '12 days' or '?'."""
  # Infinity, at the beginning, and NaN are unknown.
  if not 0 <= seconds < 1e12:
    return '?'
  if seconds >= 2 * 86400:
    return f'{seconds / 86400:,.0f} days'
  seconds = int(round(seconds))
  hours, minutes = seconds // 3600, seconds % 3600 // 60
  if hours:
    return f'{hours}:{minutes:02}:{seconds % 60:02}'
  return f'{minutes}:{seconds % 60:02}'
