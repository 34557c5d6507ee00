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
import sys

from absl import flags

from launch import cli

AREAS = tuple(sorted(
    p.stem for p in (pathlib.Path(__file__).parent / 'benches').glob('*.py')
    if p.stem != 'timing'))
_OUT = flags.DEFINE_string('out', None, 'JSON file: rows, versions, machine.')
_QUICK = flags.DEFINE_boolean('quick', False, 'Small sizes, few turns.')
_ONLY = flags.DEFINE_string('only', '', 'Only rows whose name has this in it.')


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


def main(argv):
  areas = argv[1:] or ['all']
  for area in areas:
    if area not in (*AREAS, 'all'):
      raise ValueError(f'area {area!r}: expected all, {", ".join(AREAS)}')
  if 'all' in areas:
    areas = AREAS
  rows = {}
  for area in areas:
    module = importlib.import_module(f'launch.benches.{area}')
    print(f'\n{area}\n')
    head = ['what', 'audiorank', 'rival', 'ratio [least, greatest]', 'goal',
            'note']
    print('| ' + ' | '.join(head) + ' |\n|' + '---|' * len(head))
    rows[area] = []
    for row in module.rows(_QUICK.value, _ONLY.value):
      rows[area].append(row._asdict())
      print('| ' + ' | '.join(cells(row)) + ' |', flush=True)
      if _OUT.value:
        save(rows)


def save(rows):
  """Writes what there is so far: a bench that is stopped keeps its rows."""
  from audiorank import records
  records.write_json(_OUT.value, {'machine': machine(), 'areas': rows})


if __name__ == '__main__':
  cli.run(main, words=True)
