"""Plans a grid on a TPU slice: memory, time and price of every point.

  python -m launch.sweep plan --config=FILE --topology=v5e:16x16 --price=1.2

The TPU compiler compiles every distinct shape of the grid for this slice.
Without libtpu the plan contains only what needs no compiler.
"""

from collections.abc import Iterator
import json
import pathlib
from typing import Any

import jax

from audiorank import files
from audiorank import model
from audiorank import records
from audiorank import train_state
from launch.tpu import compiler
from launch.tpu import layouts
from launch.tpu import programs
from launch.tpu import slices

MISSING = ("without libtpu nothing is compiled: memory includes only "
           "parameters and moments, links only the gradient, and times are "
           "those of the matrix units (pip install 'audiorank[tpu-plan]')")
TORN = ('the compiler gathers a whole array on every device to divide it in '
        'another way (full rematerialization), which costs time and memory')
RANKS = ('rankme is the default: exact integer sums, and rows stay on their '
         'devices. svd is the gathered jnp.linalg.svd, compiled only for the '
         'smallest width; its iterations are not included')
ONCE = ('init', 'embed', 'rankme')  # Programs besides the step.
# Columns of the table -> kinds of collectives.
KINDS = {'all-reduce': 'all-reduce', 'gather': 'all-gather',
         'scatter': 'reduce-scatter'}


def plan(configs: dict[str, Any], topology: str, price: float = 0.,
         effort: str = 'quick', mesh: str = '') -> dict[str, Any]:
  """Returns the plan as JSON; `table` makes it readable.

  Args:
    configs: {point: config}.
    topology: such as 'v5e:16x16'.
    price: of one chip for one hour, in any currency; 0 for none.
    effort: of the compiler: 'quick', or 'full' as on the real slice.
    mesh: '' takes the config's mesh. 'auto' takes the fastest that fits, and
      also finds the part of the slice on which each point takes the fewest
      chip-hours.

  Raises:
    ValueError: an unknown topology; one line.
  """
  piece = slices.parse(topology)
  jax.config.update('jax_platforms', 'cpu')  # Nothing runs on an accelerator.
  configs = {p: records.frozen(records.plain(c)) for p, c in configs.items()}
  # From here on, an empty effort stands for no compiler.
  if not compiler.available():
    effort = ''
  points, chosen = {}, {}
  for point, config in configs.items():
    layout = layouts.own(config)
    # Points that cannot be divided stay in the table, with the reason.
    reason = layouts.obstacle(config, layout, piece.chips)
    if not reason:
      chosen[point] = layout
      if effort and mesh == 'auto':
        chosen[point] = layout = layouts.fastest(config, piece, effort).layout
    points[point] = {**facts(config, piece, layout), 'why': reason}
  divides = {point: configs[point] for point in chosen}
  others = []
  if effort and divides:
    # All programs of all points in one call, so that equal ones are compiled
    # once and the longest first.
    answers = _compile(divides, chosen, piece, effort)
    for point, config in divides.items():
      points[point].update(
          _compiled(config, chosen[point], piece, effort, answers))
      if mesh == 'auto':
        points[point]['part'] = _part(config, piece, effort)
    others = _programs(divides, chosen, piece, answers)
  else:
    for point, config in divides.items():
      points[point].update(by_hand(config, piece, chosen[point]))
  for known in points.values():
    # Points that do not fit have no time.
    if known.get('seconds'):
      hours = known['steps'] * known['seconds'] * piece.chips / 3600
      known.update(chip_hours=hours, cost=hours * price)
  return {'topology': topology, 'chips': piece.chips, 'price': price,
          'effort': effort, 'points': points, 'programs': others}


def facts(config: Any, piece: slices.Slice, layout: layouts.Layout
          ) -> dict[str, Any]:
  """Returns the part of a point's plan that follows from its config."""
  clip = train_state.flops(config)['total']
  return {'data': piece.chips // layout.fsdp, 'fsdp': layout.fsdp,
          'remat': layout.remat, 'clips': config.train.batch / piece.chips,
          'flops': clip * config.train.batch, 'steps': config.train.steps}


def by_hand(config: Any, piece: slices.Slice, layout: layouts.Layout
            ) -> dict[str, Any]:
  """Returns estimates for a point without the compiler.

  Args:
    config: of the point.
    piece: the slice.
    layout: of the point.
  """
  # The only communication counted is a ring all-reduce of the gradient.
  gradient = programs.gradient_bytes(config)
  # A ring sends each byte once to reduce and once to gather, less the n-th
  # that a device owns.
  wire = 2 * gradient * (piece.chips - 1) / piece.chips
  return {'arguments': programs.state_bytes(config, layout.fsdp),
          'gradient': gradient,
          **_times(slices.bound(config, piece, wire, 0.))}


def _times(b: slices.Bound) -> dict[str, Any]:
  """Returns a Bound as JSON."""
  return {'matrix': b.matrix, 'hbm': b.hbm, 'links': b.links, 'by': b.by,
          'seconds': b.seconds, 'mfu': b.mfu}


def _compile(points: dict[str, Any], chosen: dict[str, layouts.Layout],
             piece: slices.Slice, effort: str) -> dict[str, dict[str, Any]]:
  """Returns the compiler's answers for every program of every point."""
  specs = [layouts.spec(name, config, chosen[point], piece.chips)
           for point, config in points.items() for name in ('step', *ONCE)]
  specs.append(_svd(points, chosen, piece)[0])
  return compiler.answers(specs, piece, effort)


def _svd(points: dict[str, Any], chosen: dict[str, layouts.Layout],
         piece: slices.Slice) -> tuple[dict[str, Any], Any]:
  """Returns (spec, config) of the gathered SVD at the smallest width."""
  # Only one width, because it takes as long to compile as all other programs of
  # a large grid.
  point = min(points, key=lambda p: points[p].model.width)
  spec = layouts.spec('svd', points[point], chosen[point], piece.chips)
  return spec, points[point]


def _compiled(config: Any, layout: layouts.Layout, piece: slices.Slice,
              effort: str, answers: dict[str, Any]) -> dict[str, Any]:
  """Returns the compiled part of a point's plan, with remedies if needed."""
  spec = layouts.spec('step', config, layout, piece.chips)
  step = answers[compiler.text(spec)]
  result = layouts.evaluate(config, layout, piece, step)
  out = {**facts(config, piece, layout), 'fits': bool(result.bound)}
  if result.bound:
    return {**out, **step, **_times(result.bound)}
  # The peak if it compiled, or else what the compiler says it needs.
  out['needed'] = step.get('peak') or step['needed']
  out['remedies'] = [_remedy(r) for r in layouts.remedies(
      config, piece, effort)]
  return out


def _remedy(result: layouts.Result) -> dict[str, Any]:
  """Returns another layout of a point as JSON."""
  times = {}
  if result.bound:
    times = _times(result.bound)
  return {'layout': str(result.layout), 'fits': bool(result.bound),
          'peak': result.answer.get('peak') or result.answer['needed'],
          **times}


def _part(config: Any, piece: slices.Slice, effort: str
          ) -> dict[str, Any] | None:
  """Returns the part of a slice on which a point is cheapest, or None."""
  best = layouts.cheapest(config, piece, effort)
  if best is None:
    return None
  part, result = best
  seconds = result.bound.seconds
  return {'slice': part.name, 'clips': config.train.batch / part.chips,
          'fsdp': result.layout.fsdp, 'peak': result.answer['peak'],
          'mfu': result.bound.mfu, 'by': result.bound.by, 'seconds': seconds,
          'side_by_side': piece.chips // part.chips,
          'chip_hours': config.train.steps * seconds * part.chips / 3600}


def _programs(points: dict[str, Any], chosen: dict[str, layouts.Layout],
              piece: slices.Slice, answers: dict[str, Any]
              ) -> list[dict[str, Any]]:
  """Returns one row for each distinct program besides the steps."""
  configs = {}
  for point, config in points.items():
    for name in ONCE:
      spec = layouts.spec(name, config, chosen[point], piece.chips)
      # Programs that several points share are one row.
      configs[compiler.text(spec)] = config
  spec, config = _svd(points, chosen, piece)
  configs[compiler.text(spec)] = config
  rows = []
  for text, config in configs.items():
    spec, answer = json.loads(text), answers[text]
    rows.append({
        'program': spec['program'], 'size': model.name(config.model),
        'fits': answer['fits'],
        'peak': answer.get('peak', answer.get('needed')),
        'moved': sum(c['bytes'] for c in
                     answer.get('collectives', {}).values()),
        'largest_gather': answer.get('largest_gather', 0),
        # 4 bytes a float32: what a gather of all of them would move.
        'embeddings': 4 * spec.get('clips', 0) * spec.get('width', 0)})
  return rows


def gb(n: float) -> str:
  """Returns bytes as text, in GB."""
  # Beyond 100 GB, hundredths say nothing.
  if n < 1e11:
    return f'{n / 1e9:.2f}'
  return f'{n / 1e9:.0f}'


def _gb_or_dash(n: float) -> str:
  """Returns bytes as text, in GB, a dash for 0."""
  if not n:
    return '-'
  return gb(n)


def ms(seconds: float) -> str:
  """Returns seconds as text, in milliseconds."""
  return f'{1e3 * seconds:.2f}'


def table(plan: dict[str, Any]) -> str:
  """Returns a plan as text: the points, the other programs, the sum."""
  import pandas as pd
  piece = slices.parse(plan['topology'])
  head = (f"{plan['topology']}: {piece.chips} chips of "
          f'{gb(piece.chip.memory)} GB; GB and ms are per chip and step')
  if plan['effort']:
    head += f"; compiled with {plan['effort']} effort"
  rows = [_row(point, known, plan) for point, known in plan['points'].items()]
  out = [head, pd.DataFrame(rows).fillna('').to_string(index=False)]
  for point, known in plan['points'].items():
    out += [f'{point}: {note}' for note in _notes(known, piece)]
  if plan['programs']:
    others = []
    for r in plan['programs']:
      peak = gb(r['peak'])
      if not r['fits']:
        peak += ': too large'
      others.append({
          'program': r['program'], 'size': r['size'], 'peak': peak,
          'moved': gb(r['moved']),
          'of embeddings': _gb_or_dash(r['embeddings'])})
    out += [pd.DataFrame(others).to_string(index=False), RANKS]
  out.append(total(plan))
  if not plan['effort']:
    out.append(MISSING)
  return '\n'.join(out)


def _row(point: str, known: dict[str, Any], plan: dict[str, Any]
         ) -> dict[str, Any]:
  """Returns a point's row of the table, as texts."""
  # All of them, so that their order does not depend on the first point.
  blank = dict.fromkeys((
      'args', 'temp', 'peak', *KINDS, 'other', 'matrix', 'HBM', 'links', 'MFU',
      'chip-h'), '')
  row = {'point': point,
         'mesh': f"{known['data']}x{known['fsdp']} {known['remat']}",
         'clips': f"{known['clips']:g}", **blank,
         'FLOPs': f"{known['flops']:.2e}", 'steps': known['steps']}
  if known['why']:
    return {**row, 'peak': 'does not divide'}
  if known.get('fits') is False:
    return {**row, 'peak': f"{gb(known['needed'])}: too large"}
  row.update({
      'args': gb(known['arguments']), 'matrix': ms(known['matrix']),
      'links': ms(known['links']), 'MFU': f"{known['mfu']:.0%} {known['by']}",
      'chip-h': f"{known['chip_hours']:,.0f}"})
  if plan['price']:
    row['cost'] = f"{known['cost']:,.0f}"
  # Without the compiler only the gradient's all-reduce is known.
  if 'peak' not in known:
    return {**row, 'all-reduce': gb(known['gradient'])}
  collectives = known['collectives']
  other = sum(c['bytes'] for kind, c in collectives.items()
              if kind not in KINDS.values())
  row.update({
      'temp': gb(known['temporaries']), 'peak': gb(known['peak']),
      'HBM': ms(known['hbm']), 'other': _gb_or_dash(other)})
  for name, kind in KINDS.items():
    row[name] = '-'
    if kind in collectives:
      row[name] = gb(collectives[kind]['bytes'])
  return row


def _notes(known: dict[str, Any], piece: slices.Slice) -> Iterator[str]:
  """Yields notes on a point, for below the table."""
  if known['why']:
    yield known['why']
  elif known.get('fits') is False:
    yield _remedies(known, piece)
  elif known.get('rematerialised'):
    yield TORN
  part = known.get('part')
  # Only where a smaller part is cheaper than the whole slice.
  if part and part['side_by_side'] > 1:
    yield (f"fewest chip-hours on {part['slice']} ({part['clips']:g} clips per "
           f"chip): {part['chip_hours']:,.0f}, MFU at most {part['mfu']:.0%} "
           f"{part['by']}; {part['side_by_side']} runs at the same time")


def _remedies(known: dict[str, Any], piece: slices.Slice) -> str:
  """Returns the layouts with which a point would fit, as a sentence."""
  fit = [r for r in known['remedies'] if r['fits']]
  too_large = [r for r in known['remedies'] if not r['fits']]
  text = f'does not fit {gb(piece.chip.memory)} GB; fits with '
  text += '; '.join(
      f"{r['layout']}: {gb(r['peak'])} GB, {ms(r['seconds'])} ms, MFU at most "
      f"{r['mfu']:.0%}" for r in fit) or 'none of the compiled layouts'
  if too_large:
    others = ', '.join(f"{r['layout']} ({gb(r['peak'])})" for r in too_large)
    text += f'; not with {others}'
  return text


def total(plan: dict[str, Any]) -> str:
  """Returns the sum over the points, as a sentence."""
  # Points that do not fit have no hours.
  hours = [p['chip_hours'] for p in plan['points'].values()
           if 'chip_hours' in p]
  # One run after the other, each on the whole slice.
  days = sum(hours) / plan['chips'] / 24
  text = (f"{len(plan['points'])} points, {len(hours)} of them fit: at least "
          f'{sum(hours):,.0f} chip-hours, {days:,.1f} days of this slice for '
          'one after the other')
  if plan['price']:
    cost = sum(hours) * plan['price']
    text += f", {cost:,.0f} at {plan['price']:g} per chip-hour"
  return text + '; without evaluation, RankMe and scoring'


def save(plan: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a plan as JSON."""
  files.write_json(path, plan)
