"""How far the job is: a bar on a terminal, else a line every few seconds."""

from collections.abc import Iterator
import contextlib
import sys
import time

import tqdm

EVERY = 10  # Seconds between lines.
REDRAW = .2  # Seconds between changes of the bar.


@contextlib.contextmanager
def shown(jobs: list[dict], rate: int) -> Iterator:
  """Yields what `pool.run` calls with each message, and shows the work."""
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
    # Shard -> (files begun, bytes read of the last).
    self._current: dict[str, tuple[int, int]] = {}
    self._name = ''
    self._began = self._shown = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
          total=self._total, unit='B', unit_scale=True, desc='prepare',
          smoothing=0.05, dynamic_ncols=True)

  def notice(self, job: dict | None, message: dict | None) -> None:
    """Takes a message of a worker; None and None stand for none."""
    if job is not None and message is not None:
      self._count(job, message)
    every = EVERY if self._bar is None else REDRAW
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
      self._bar.n = now
      self._bar.set_postfix_str(
          f'{hours:.2f} h, {self._done["refused"]} refused, '
          f'{self._name[-40:]}', refresh=False)
      self._bar.refresh()
      return
    spent = time.monotonic() - self._began
    left = f'{spent * (self._total - now) / now:.0f} s left' if now else (
        'starting')
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
