"""A worker that trains nothing: it claims runs and marks them as done.

  python tests/stand_in.py SECONDS FOLDER --root=ROOT ...

It says in FOLDER which environment it got and which runs it did, and holds a
lock file for each chip that it was given, as libtpu does: a second process on
one chip leaves a file that says so.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time

from audiorank import records
from launch import run_queue
from launch import work

NAMES = ('CUDA_VISIBLE_DEVICES', 'XLA_PYTHON_CLIENT_MEM_FRACTION',
         'TPU_VISIBLE_CHIPS', 'TPU_PROCESS_PORT', 'JAX_PLATFORMS')


def main():
  work.die_with_parent()
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
  seconds, folder, *flags = sys.argv[1:]
  flags = dict(flag.removeprefix('--').split('=', 1) for flag in flags)
  folder = pathlib.Path(folder)
  chips = []
  for chip in filter(None, os.environ.get('TPU_VISIBLE_CHIPS', '').split(',')):
    chips.append(open(folder / f'chip{chip}', 'a'))
    try:
      fcntl.flock(chips[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      (folder / f'collision{os.getpid()}').touch()
  (folder / f'{os.getpid()}.json').write_text(json.dumps(
      {name: os.environ[name] for name in NAMES if name in os.environ}))
  only = pathlib.Path(flags['runs']).read_text().split()
  board = run_queue.Board(flags['root'], only)
  while runs := run_queue.claim(board, flags['roles'].split(',')):
    time.sleep(float(seconds))
    for run in runs:
      with open(folder / 'done.txt', 'a') as done:
        done.write(f'{run.workdir.name}\n')
      records.write_json(run.workdir / 'DONE', {})
      run.lock.release()


if __name__ == '__main__':
  main()
