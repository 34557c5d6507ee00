"""The plan of a grid on a TPU slice: does it fit, how fast, at what price.

  python -m launch.sweep plan --config=FILE --topology=v5e:16x16 --price=1.2

Every distinct shape of the grid is compiled by the TPU compiler for the slice
itself. Without libtpu the plan says what needs no compiler.
"""

import json

import jax

from audiorank import program
from audiorank import records
from launch.pod import chips
from launch.pod import choice
from launch.pod import programs
from launch.pod import roofline
from launch.pod import store

MISSING = ("without libtpu nothing is compiled: memory counts parameters and "
           "moments alone, links the gradient alone, and times are those of "
           "the matrix units (pip install 'audiorank[tpu-plan]')")
TORN = ('the compiler gathers an array whole on every device to cut it in '
        'another way (full rematerialization): time and memory for nothing')
ONCE = ('init', 'embed', 'rankme')  # Beside the step.


def plan(configs, topology, price=0., effort='quick', mesh=''):
  """Returns the plan as JSON material; `table` prints it.

  Args:
    configs: {point: config}.
    topology: such as 'v5e:16x16'.
    price: of one chip for one hour, in any currency; 0 for none.
    effort: of the compiler: 'quick', or 'full' as on the slice itself.
    mesh: '' takes the config's mesh, 'auto' the fastest that fits.

  Raises:
    ValueError: an unknown topology; one line.
  """
  piece = chips.parse(topology)
  jax.config.update('jax_platforms', 'cpu')  # Nothing runs on an accelerator.
  configs = {p: records.frozen(records.plain(c)) for p, c in configs.items()}
  compiled = store.available()
  out = {'topology': topology, 'chips': piece.chips, 'price': price,
         'effort': effort if compiled else '', 'points': {}, 'programs': []}
  layouts, points = {}, {}
  for point, config in configs.items():
    layouts[point] = choice.own(config)
    why = choice.why_not(config, layouts[point], piece.chips)
    if not why:
      points[point] = config
    out['points'][point] = {
        **facts(config, piece, layouts[point]), 'why': why}
  if not compiled:
    for point, config in points.items():
      out['points'][point].update(by_hand(config, piece, layouts[point]))
  elif points:
    if mesh == 'auto':
      for point, config in points.items():
        layouts[point] = choice.fastest(config, piece, effort).layout
    answers = _compile(points, layouts, piece, effort)
    for point, config in points.items():
      out['points'][point].update(
          _compiled(config, layouts[point], piece, effort, answers))
    out['programs'] = _programs(points, layouts, piece, answers)
  for got in out['points'].values():
    if got.get('seconds'):
      hours = got['steps'] * got['seconds'] * piece.chips / 3600
      got.update(chip_hours=hours, cost=hours * price)
  return out


def facts(config, piece, layout):
  """Returns what is known of a point without a compiler."""
  clip = program.flops(config)['total']
  return {'data': piece.chips // layout.fsdp, 'fsdp': layout.fsdp,
          'remat': layout.remat, 'clips': config.train.batch / piece.chips,
          'flops': clip * config.train.batch, 'steps': config.train.steps}


def by_hand(config, piece, layout):
  """Returns the part of a point's plan that needs no compiler."""
  gradient = programs.gradient_bytes(config)
  wire = 2 * gradient * (piece.chips - 1) / piece.chips
  b = roofline.bound(config, piece, wire, 0.)
  return {'arguments': programs.state_bytes(config, layout.fsdp),
          'gradient': gradient, **_times(b)}


def _times(b):
  return {'matrix': b.matrix, 'hbm': b.hbm, 'links': b.links, 'by': b.by,
          'seconds': b.seconds, 'mfu': b.mfu}


def _compile(points, layouts, piece, effort):
  """Returns the compiler's answers to every program of every point."""
  specs = [choice.spec(name, config, layouts[point], piece.chips)
           for point, config in points.items() for name in ('step', *ONCE)]
  specs.append(_svd(points, layouts, piece))
  return store.answers(specs, piece, effort)


def _svd(points, layouts, piece):
  """Returns the spec of the gathered SVD at the grid's least width.

  It alone takes as long to compile as all the rest of a large grid does.
  """
  point = min(points, key=lambda p: points[p].model.width)
  return choice.spec('svd', points[point], layouts[point], piece.chips)


def _compiled(config, layout, piece, effort, answers):
  """Returns the compiled part of a point's plan."""
  step = answers[store.text(choice.spec('step', config, layout, piece.chips))]
  got = choice.judged(config, layout, piece, step)
  out = {**facts(config, piece, layout), 'fits': bool(got.bound)}
  if got.bound:
    return {**out, **step, **_times(got.bound)}
  out['needed'] = step.get('peak') or step['needed']
  out['remedies'] = [
      {'layout': str(t.layout), 'fits': bool(t.bound),
       'peak': t.answer.get('peak') or t.answer['needed'],
       **(_times(t.bound) if t.bound else {})}
      for t in choice.remedies(config, piece, effort)]
  return out


def _programs(points, layouts, piece, answers):
  """Returns one row for each distinct program beside the steps."""
  rows, specs = [], {}
  for point, config in points.items():
    for name in ONCE:
      specs[store.text(choice.spec(name, config, layouts[point],
                                   piece.chips))] = config
  svd = _svd(points, layouts, piece)
  specs[store.text(svd)] = points[min(
      points, key=lambda p: points[p].model.width)]
  for text, config in specs.items():
    spec, got = json.loads(text), answers[text]
    m = config.model
    rows.append({
        'program': spec['program'], 'size': f'en{m.width}-{m.depth}',
        'fits': got['fits'], 'peak': got.get('peak', got.get('needed')),
        'moved': sum(c['bytes'] for c in got.get('collectives', {}).values()),
        'largest_gather': got.get('largest_gather', 0),
        'embeddings': 4 * spec.get('clips', 0) * spec.get('width', 0)})
  return rows


def gb(n):
  """Returns bytes as text, in GB."""
  return f'{n / 1e9:.2f}' if n < 1e11 else f'{n / 1e9:.0f}'


def ms(seconds):
  """Returns seconds as text, in milliseconds."""
  return f'{1e3 * seconds:.2f}'


def moved(got, kind):
  """Returns GB a chip's collectives of one kind hold, as text."""
  found = got.get('collectives', {}).get(kind)
  return gb(found['bytes']) if found else '-'


def table(made):
  """Returns a plan as text: the points, the other programs, the sum."""
  import pandas as pd
  piece = chips.parse(made['topology'])
  shown, notes = [], []
  for point, got in made['points'].items():
    row = {'point': point, 'mesh': f"{got['data']}x{got['fsdp']}"
                                   f"{' remat' if got['remat'] else ''}",
           'clips': f"{got['clips']:g}"}
    blank = dict.fromkeys((
        'args', 'temp', 'peak', 'all-reduce', 'gather', 'scatter', 'other',
        'matrix', 'HBM', 'links', 'MFU', 'chip-h'), '')
    row.update(blank)
    row.update({'FLOPs': f"{got['flops']:.2e}", 'steps': got['steps']})
    if got['why']:
      notes.append(f"{point}: {got['why']}")
      row['peak'] = 'does not divide'
    elif got.get('fits') is False:
      notes.append(f"{point}: {_remedy(got, piece)}")
      row['peak'] = f"{gb(got['needed'])}: too large"
    else:
      row.update({
          'args': gb(got['arguments']), 'matrix': ms(got['matrix']),
          'links': ms(got['links']),
          'MFU': f"{got['mfu']:.0%} {got['by']}",
          'chip-h': f"{got['chip_hours']:,.0f}"})
      if 'peak' in got:
        known = ('all-reduce', 'all-gather', 'reduce-scatter')
        other = sum(c['bytes'] for kind, c in got['collectives'].items()
                    if kind not in known)
        row.update({'temp': gb(got['temporaries']), 'peak': gb(got['peak']),
                    **{name: moved(got, kind) for name, kind in zip(
                        ('all-reduce', 'gather', 'scatter'), known)},
                    'other': gb(other) if other else '-',
                    'HBM': ms(got['hbm'])})
        if got['rematerialised']:
          notes.append(f'{point}: {TORN}')
      else:
        row['all-reduce'] = gb(got['gradient'])
      if made['price']:
        row['cost'] = f"{got['cost']:,.0f}"
    shown.append(row)
  out = [f"{made['topology']}: {piece.chips} chips of "
         f"{gb(piece.chip.memory)} GB; GB and ms are a chip's, of one step"
         + (f"; compiled with {made['effort']} effort" if made['effort']
            else '')]
  out.append(pd.DataFrame(shown).fillna('').to_string(index=False))
  out += notes
  if made['programs']:
    out.append(pd.DataFrame([{
        'program': r['program'], 'size': r['size'],
        'peak': gb(r['peak']) + ('' if r['fits'] else ': too large'),
        'moved': gb(r['moved']),
        'of embeddings': gb(r['embeddings']) if r['embeddings'] else '-'}
        for r in made['programs']]).to_string(index=False))
    out.append('rankme is the default: exact integer sums, rows stay where '
               'they are. svd is the gathered jnp.linalg.svd, compiled for '
               'the least width alone; each of its iterations comes on top')
  out.append(total(made))
  if not made['effort']:
    out.append(MISSING)
  return '\n'.join(out)


def _remedy(got, piece):
  """Returns what would make a point fit, as one sentence."""
  fit = [r for r in got['remedies'] if r['fits']]
  not_fit = [r for r in got['remedies'] if not r['fits']]
  said = '; '.join(
      f"{r['layout']}: {gb(r['peak'])} GB, {ms(r['seconds'])} ms, MFU at most "
      f"{r['mfu']:.0%}" for r in fit) or 'none of what was compiled'
  also = ', '.join(f"{r['layout']} ({gb(r['peak'])})" for r in not_fit)
  return (f"does not fit {gb(piece.chip.memory)} GB; fits by {said}"
          + (f'; not by {also}' if also else ''))


def total(made):
  """Returns the sum over the points, as one sentence."""
  known = [g for g in made['points'].values() if 'chip_hours' in g]
  hours = sum(g['chip_hours'] for g in known)
  days = hours / made['chips'] / 24
  text = (f"{len(made['points'])} points, {len(known)} that run as they are: "
          f"at least {hours:,.0f} chip-hours, {days:,.1f} days of this slice "
          'one after the other')
  if made['price']:
    text += f", {hours * made['price']:,.0f} at {made['price']:g} a chip-hour"
  return text + '; reading, RankMe and scoring come on top'


def save(made, path):
  """Writes a plan as JSON."""
  records.write_json(path, made)

