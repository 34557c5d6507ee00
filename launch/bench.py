"""Times audiorank against named rivals, in turns, in one run.

  python -m launch.bench laws
  python -m launch.bench rankme --out=bench.json
  python -m launch.bench all --quick

A ratio is the rival's time over ours: above 1 we are faster. Its least and
greatest over the turns stand beside it. Machines are noisy and differ; what
was measured elsewhere is no rival. Peers that are not installed are said to
be absent: pip install -e '.[peers]' has those that pip can install, and
tests/peers/install.sh the others.
"""

import importlib
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

from absl import flags

from launch import cli

AREAS = tuple(sorted(
    p.stem for p in (pathlib.Path(__file__).parent / 'benches').glob('*.py')
    if p.stem not in ('__init__', 'timing', 'spectra', 'steps')))
_OUT = flags.DEFINE_string('out', None, 'JSON file: rows, versions, machine.')
_QUICK = flags.DEFINE_boolean('quick', False, 'Small sizes, few turns.')
_ONLY = flags.DEFINE_string('only', '', 'Only rows whose name has this in it.')
_HERE = flags.DEFINE_boolean('here', False, 'In this process; one area.')


# Set before a process starts: BLAS reads them once.
ONE_THREAD = dict.fromkeys(
    ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')


def pinned(module):
  """Returns whether an area is timed on one core."""
  return getattr(module, 'PINNED', False)


def machine():
  """Returns what the figures depend on: processor, cores, versions."""
  import jax
  import numpy as np
  import scipy
  found = {'python': platform.python_version(), 'jax': jax.__version__,
           'numpy': np.__version__, 'scipy': scipy.__version__,
           'device': jax.devices()[0].device_kind,
           'backend': jax.default_backend(), 'machine': platform.machine()}
  if hasattr(os, 'sched_getaffinity'):
    found['cores'] = len(os.sched_getaffinity(0))
  for peer in ('torch', 'heareval', 'librosa', 'transformers'):
    if peer in sys.modules:
      found[peer] = getattr(sys.modules[peer], '__version__', 'unknown')
  return found


def cells(row):
  """Returns a row of the Markdown table as texts."""
  number = lambda x: '' if x is None or x != x else f'{x:.3g}'
  sides = (f'{number(row.ours_value)} {row.unit}',
           f'{row.rival} {number(row.rival_value)} {row.unit}'
           if row.rival_value is not None else row.rival)
  ratio = '' if row.ratio is None else (
      f'{number(row.ratio)} [{number(row.low)}, {number(row.high)}]')
  return [row.what, *sides, ratio, number(row.goal), row.note]


def chosen(words):
  """Returns the areas meant: 'rankme' means rankme_mesh as well."""
  meant = lambda area, word: word in ('all', area, area.split('_')[0])
  for word in words:
    if not any(meant(area, word) for area in AREAS):
      raise ValueError(f'area {word!r}: expected all, {", ".join(AREAS)}')
  return [area for area in AREAS if any(meant(area, w) for w in words)]


def run(area):
  """Runs one area here, its table printed row by row; returns its rows."""
  module = importlib.import_module(f'launch.benches.{area}')
  if pinned(module) and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  head = ['what', 'audiorank', 'rival', 'ratio [least, greatest]', 'goal',
          'note']
  print(f'\n{area}\n\n| ' + ' | '.join(head) + ' |\n|' + '---|' * len(head),
        flush=True)
  rows = []
  for row in module.rows(_QUICK.value, _ONLY.value):
    rows.append(row._asdict())
    print('| ' + ' | '.join(cells(row)) + ' |', flush=True)
    if _OUT.value:
      # Row by row: a bench that is stopped keeps what it has.
      from audiorank import records
      records.write_json(_OUT.value, {'areas': {area: {
          'machine': machine(), 'rows': rows}}})
  return rows


def main(argv):
  areas = chosen(argv[1:] or ['all'])
  if _HERE.value:
    run(areas[0])
    return
  from audiorank import records
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    for area in areas:
      # A process each: its own devices, pinning, peers and memory.
      module = importlib.import_module(f'launch.benches.{area}')
      part = pathlib.Path(folder) / f'{area}.json'
      code = subprocess.run(
          [sys.executable, '-m', 'launch.bench', area, '--here',
           f'--out={part}', f'--only={_ONLY.value}',
           f'--quick={str(_QUICK.value).lower()}'],
          env={**os.environ, **(ONE_THREAD if pinned(module) else {}),
               **getattr(module, 'ENV', {})}).returncode
      if part.exists():
        found.update(records.read_json(part)['areas'])
      if _OUT.value:
        records.write_json(_OUT.value, {'areas': found})
      if code:
        raise ValueError(f'bench {area} ended with exit code {code}')


if __name__ == '__main__':
  cli.run(main, words=True)
