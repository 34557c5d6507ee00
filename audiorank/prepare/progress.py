"""Shows the progress: a bar on a terminal, otherwise a line now and then."""

from collections.abc import Iterator
import contextlib
import sys
import time

import tqdm

EVERY = 10  # Seconds between lines.
REDRAW = .2  # Seconds between changes of the bar.


@contextlib.contextmanager
def shown(jobs: list[dict], rate: int) -> Iterator:
  """Yields the `notice` for `pool.run`, which shows the progress.

  Args:
    jobs: as for `pool.run`.
    rate: samples per second, to show hours.
  """
  progress = _Progress(jobs, rate)
  try:
    yield progress.notice
  finally:
    progress.close()


class _Progress:
  """Bytes read, files and hours kept and refused, over all workers."""

  def __init__(self, jobs: list[dict], rate: int):
    self._rate = rate
    self._sizes = {job['shard']: [e['size'] for e in job['entries']]
                   for job in jobs}
    self._total = sum(map(sum, self._sizes.values()))
    self._files = sum(map(len, self._sizes.values()))
    self._done = {'bytes': 0, 'files': 0, 'refused': 0, 'samples': 0}
    # Shard -> (number of the current file, bytes read of it).
    self._current: dict[str, tuple[int, int]] = {}
    self._name = ''
    self._began = self._shown = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      # A rate over many updates, as the sizes of files differ.
      self._bar = tqdm.tqdm(
          total=self._total, unit='B', unit_scale=True, desc='prepare',
          smoothing=0.05, dynamic_ncols=True)

  def notice(self, job: dict | None, message: dict | None) -> None:
    """Takes a message of a worker, or None and None if there is none."""
    if job is not None and message is not None:
      self._count(job, message)
    every: float = EVERY
    if self._bar is not None:
      every = REDRAW
    if time.monotonic() - self._shown > every:
      self._shown = time.monotonic()
      self._show()

  def _count(self, job: dict, message: dict) -> None:
    shard = job['shard']
    if 'file' in message:
      self._current[shard] = message['file'], 0
      self._name = job['entries'][message['file']]['file']
    if 'place' in message and shard in self._current:
      self._current[shard] = self._current[shard][0], message['place']
    if 'done' in message:
      self._current.pop(shard, None)
      self._done['bytes'] += sum(self._sizes[shard])
      for key in ('files', 'refused', 'samples'):
        self._done[key] += message['done'][key]

  def _show(self) -> None:
    now = self._done['bytes'] + sum(
        sum(self._sizes[shard][:index]) + place
        for shard, (index, place) in self._current.items())
    hours = self._done['samples'] / self._rate / 3600
    if self._bar is not None:
      # Set, not added: workers report places within their files.
      self._bar.n = now
      self._bar.set_postfix_str(
          f'{hours:.2f} h, {self._done["refused"]} refused, '
          f'{self._name[-40:]}', refresh=False)
      self._bar.refresh()
      return
    spent = time.monotonic() - self._began
    left = 'starting'
    if now:
      left = f'{spent * (self._total - now) / now:.0f} s left'
    # Names are escaped: a log may not accept every character.
    print(f'prepare: {now / max(self._total, 1):.0%} of '
          f'{self._total / 1e6:.0f} MB, {self._done["files"]}/{self._files} '
          f'files, {hours:.2f} h of sound, {hours * 3600 / spent:.0f} x real '
          f'time, {self._done["refused"]} refused, {left}; '
          f'{self._name.encode("ascii", "backslashreplace").decode()}',
          file=sys.stderr, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._show()
      self._bar.close()
