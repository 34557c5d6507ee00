"""Times audiorank against named rivals, in turns, in one run.

  python -m launch.bench laws
  python -m launch.bench rankme --out=bench.json
  python -m launch.bench all --quick

A ratio is the rival's time over ours, so above 1 we are faster; its smallest
and largest value over the turns are printed as well. Both sides always run on
this machine, because machines differ. Rows name the peers that are not
installed: pip install -e '.[peers]' installs those that pip can, and
tests/peers/install.sh the others.
"""

import importlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from types import ModuleType
from typing import Any

from absl import flags

from audiorank import files
from launch import cli
from launch import devices
from launch.benches import timing

AREAS = tuple(sorted(
    p.stem for p in (pathlib.Path(__file__).parent / 'benches').glob('*.py')
    # Modules that areas share are no areas.
    if p.stem not in ('__init__', 'timing', 'spectra', 'steps',
                      'fake_gcs')))
_OUT = flags.DEFINE_string('out', None, 'JSON file: rows, versions, machine.')
_QUICK = flags.DEFINE_boolean('quick', False, 'Small sizes, few turns.')
_ONLY = flags.DEFINE_string('only', '', 'Only rows whose names contain this.')
_HERE = flags.DEFINE_boolean('here', False, 'Run one area in this process.')
HEAD = ('what', 'audiorank', 'rival', 'ratio [least, greatest]', 'goal',
        'note')
# Must be set before a process starts, because BLAS reads them only then.
ONE_THREAD = dict.fromkeys(
    ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')


def pinned(module: ModuleType) -> bool:
  """Returns whether an area is timed on one core."""
  return getattr(module, 'PINNED', False)


def machine() -> dict[str, Any]:
  """Returns a description of the machine: device, cores, versions."""
  import jax
  import numpy as np
  import scipy
  about = {'python': platform.python_version(), 'jax': jax.__version__,
           'numpy': np.__version__, 'scipy': scipy.__version__,
           'device': device(), 'machine': platform.machine()}
  if hasattr(os, 'sched_getaffinity'):
    about['cores'] = len(os.sched_getaffinity(0))
  # Only peers that were imported for a row.
  for peer in ('torch', 'heareval', 'librosa', 'transformers'):
    if peer in sys.modules:
      about[peer] = getattr(sys.modules[peer], '__version__', 'unknown')
  return about


def device() -> str:
  """Returns the name of the device."""
  # A GPU must not be opened in this process, because the children of a bench
  # need all of its memory.
  if devices.find().kind == 'gpu' and shutil.which('nvidia-smi'):
    query = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
    return subprocess.run(query, capture_output=True,
                          text=True).stdout.partition('\n')[0]
  import jax
  return jax.devices()[0].device_kind


def cells(row: timing.Row) -> list[str]:
  """Returns a row of the Markdown table as texts."""
  from audiorank.report import numbers

  def number(x: float | None) -> str:
    return numbers.number(x, '{:.3g}', missing='')

  rival, ratio = row.rival, ''
  if row.rival_value is not None:
    rival = f'{row.rival} {number(row.rival_value)} {row.unit}'
  if row.ratio is not None:
    ratio = f'{number(row.ratio)} [{number(row.low)}, {number(row.high)}]'
  return [row.what, f'{number(row.ours_value)} {row.unit}', rival, ratio,
          number(row.goal), row.note]


def chosen(words: list[str]) -> list[str]:
  """Returns the areas of some names: 'rankme' includes rankme_mesh.

  Raises:
    ValueError: a name without an area.
  """
  def names(word: str, area: str) -> bool:
    return word in ('all', area, area.split('_')[0])

  for word in words:
    if not any(names(word, area) for area in AREAS):
      raise ValueError(f'area {word!r}: expected all, {", ".join(AREAS)}')
  return [area for area in AREAS if any(names(w, area) for w in words)]


def run(area: str) -> None:
  """Runs one area in this process and prints its table row by row."""
  module = importlib.import_module(f'launch.benches.{area}')
  if pinned(module) and hasattr(os, 'sched_setaffinity'):
    # Before any library starts its threads.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  print(f'\n{area}\n\n| ' + ' | '.join(HEAD) + ' |\n|' + '---|' * len(HEAD),
        flush=True)
  rows = []
  for row in module.rows(_QUICK.value, _ONLY.value):
    rows.append(row._asdict())
    print('| ' + ' | '.join(cells(row)) + ' |', flush=True)
    if _OUT.value:
      # After every row, so that a bench that is stopped has its first rows.
      files.write_json(_OUT.value, {'areas': {area: {
          'machine': machine(), 'rows': rows}}})


def main(argv: list[str]) -> None:
  """Runs the command."""
  areas = chosen(argv[1:] or ['all'])
  if _HERE.value:
    run(areas[0])
    return
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    for area in areas:
      # Each area has its own process, with its own devices, cores, peers and
      # memory.
      module = importlib.import_module(f'launch.benches.{area}')
      part = pathlib.Path(folder) / f'{area}.json'
      if _OUT.value and len(areas) == 1:
        part = pathlib.Path(_OUT.value)  # So that it exists if we are stopped.
      threads = {}
      if pinned(module):
        threads = ONE_THREAD
      code = subprocess.run(
          [sys.executable, '-m', 'launch.bench', area, '--here',
           f'--out={part}', f'--only={_ONLY.value}',
           f'--quick={str(_QUICK.value).lower()}'],
          env={**os.environ, **threads, **getattr(module, 'ENV', {})}
      ).returncode
      # Also of an area that failed: it has the rows before that.
      if part.exists():
        results.update(files.read_json(part)['areas'])
      if _OUT.value:
        files.write_json(_OUT.value, {'areas': results})
      # After the results are written: areas before this one stay.
      if code:
        raise ValueError(f'bench {area} ended with exit code {code}')


if __name__ == '__main__':
  cli.run(main, words=True)
