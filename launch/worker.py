"""Claims the runs of a sweep, trains and scores them until none is left.

  python -m launch.worker --root=ROOT
  python -m launch.worker --root=ROOT --roles=score

launch.sweep starts one on every device. More can be started by hand, on any
machine that can access the folder. Only one worker at a time works on a run. If
it dies, the steps since the last save are lost, and another worker continues.

Exit codes: 0 no run is left without a worker; 42 stopped, run it again; other
codes from 1 to 41 an error that would happen again; 128 and above killed, or
the device failed: run it again.
"""

import sys

from absl import flags

from audiorank import files
from launch import cli
from launch import run_queue
from launch import work

_ROOT = flags.DEFINE_string('root', None, 'Folder of the sweep.',
                            required=True)
_ROLES = flags.DEFINE_list(
    'roles', list(run_queue.ROLES),
    'What this worker does: train, score or both.')
_PACK = flags.DEFINE_integer(
    'pack', 0, 'Runs of one shape that train in one program; 0 takes as many '
    'as fit on an accelerator and 1 on a CPU.', lower_bound=0)
_RUNS = flags.DEFINE_string(
    'runs', None, 'File with one run per line; by default all runs of the '
    'sweep.')
_WORKERS = flags.DEFINE_integer(
    'workers', 1, 'Number of workers that share the remaining runs: none packs '
    'more runs in one program than its part.', lower_bound=1)


def main(argv: list[str]) -> None:
  """Runs the command."""
  del argv
  work.die_with_parent()
  run_queue.check_roles(_ROLES.value)
  # From here on a signal asks to stop, and no longer ends the process.
  status = work.Status()
  # Programs that one worker compiles serve all of them.
  cli.compile_cache()
  work.skip_storage_metrics()
  # Before a run is claimed, so that a broken device does not fail runs.
  work.open_device()
  only = None
  if _RUNS.value:
    only = files.path(_RUNS.value, '--runs').read_text(encoding='utf-8').split()
  board = run_queue.Board(files.path(_ROOT.value, '--root'), only)
  sys.exit(work.Worker(board, _ROLES.value, _PACK.value, _WORKERS.value,
                       status).run())


if __name__ == '__main__':
  cli.run(main)
