"""How far the job is: a bar on a terminal, else a line every few seconds."""

import contextlib
import sys
import time

import tqdm

EVERY = 10


@contextlib.contextmanager
def shown(jobs, rate):
  """Yields what `pool.run` calls with each message, and shows the work."""
  sizes = {job['shard']: [e['size'] for e in job['entries']] for job in jobs}
  total = sum(map(sum, sizes.values()))
  files = sum(map(len, sizes.values()))
  done = {'bytes': 0, 'files': 0, 'refused': 0, 'samples': 0}
  current = {}  # shard -> (files begun, bytes read of the last)
  name = ''
  began = told = time.monotonic()
  bar = tqdm.tqdm(
      total=total, unit='B', unit_scale=True, desc='prepare', smoothing=0.05,
      dynamic_ncols=True) if sys.stderr.isatty() else None

  def tell():
    now = done['bytes'] + sum(
        sum(sizes[shard][:index]) + place
        for shard, (index, place) in current.items())
    hours = done['samples'] / rate / 3600
    if bar is not None:
      bar.n = now
      bar.set_postfix_str(
          f'{hours:.2f} h, {done["refused"]} refused, {name[-40:]}',
          refresh=False)
      bar.refresh()
      return
    spent = time.monotonic() - began
    left = f'{spent * (total - now) / now:.0f} s left' if now else 'starting'
    print(f'prepare: {now / max(total, 1):.0%} of {total / 1e6:.0f} MB, '
          f'{done["files"]}/{files} files, {hours:.2f} h of sound, '
          f'{hours * 3600 / spent:.0f} x real time, {done["refused"]} refused, '
          f'{left}; {name}', file=sys.stderr, flush=True)

  def notice(job, message):
    nonlocal told, name
    if job is not None and 'file' in message:
      current[job['shard']] = message['file'], 0
      name = job['entries'][message['file']]['file']
    if job is not None and 'place' in message and job['shard'] in current:
      current[job['shard']] = current[job['shard']][0], message['place']
    if job is not None and 'done' in message:
      current.pop(job['shard'], None)
      done['bytes'] += sum(sizes[job['shard']])
      for key in ('files', 'refused', 'samples'):
        done[key] += message['done'][key]
    if time.monotonic() - told > (0.2 if bar is not None else EVERY):
      told = time.monotonic()
      tell()
  try:
    yield notice
  finally:
    if bar is not None:
      tell()
      bar.close()
