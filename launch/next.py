"""What to scale next: `launch.sweep next`, from a sweep's records and a budget.

  python -m launch.sweep next --root=runs/quickstart --budget=1e13
  python -m launch.sweep next --root=runs/quickstart --decide=size
  python -m launch.sweep next --root=tables/runs.parquet --decide='masking rate'

It prints what a doubling along each axis is expected to add to the score, the
best run that the budget buys, and the next runs, and writes these as a config
that `launch.sweep` runs. The numbers are of audiorank/analysis/advice.py.
"""

import json
import pathlib
from typing import Any

from absl import flags
import numpy as np
import pandas as pd

from audiorank import config as config_lib
from audiorank import files
from audiorank import records
from audiorank.analysis import advice
from audiorank.analysis import claims
from audiorank.analysis import decide
from audiorank.analysis import study
from audiorank.report import wording
from configs import base
from launch import cli

_BUDGET = flags.DEFINE_float(
    'budget', None, 'FLOPs of training for the next runs together, decoder '
    'included, for next; by default twice those of the best configuration.',
    lower_bound=0.)
_DECIDE = flags.DEFINE_string(
    'decide', '', 'What the next runs shall decide instead of gaining score: '
    'the gain along an axis (size, hours, steps), or the slope of a family in '
    'the report\'s table of claims, such as "masking rate".')
_HOURS = flags.DEFINE_float(
    'audio_hours', None, 'Hours of audio that there are, for next; by default '
    'those of the corpus.', lower_bound=0.)
_OUT = flags.DEFINE_string(
    'next_config', None, 'The config file to write, for next; by default '
    'next.py in the root.')

# Fields that are numbers of steps, and change with the length of training.
IN_STEPS = ('opt.warmup', 'monitor.first_eval', 'monitor.eval_every',
            'checkpoint.save_every', 'checkpoint.keep_every')
TEMPLATE = '''"""{title}

  python -m launch.sweep --config={path} --root={root}

{about}
"""

import json

from configs import base

# All fields that differ from configs/base.py, and those of each point.
COMMON = json.loads(r\'\'\'{common}\'\'\')
POINTS = json.loads(r\'\'\'{points}\'\'\')


def get_config(point={first!r}):
  """Returns the config of a point."""
  c = base.get_config('en16-1')
  for fields in (COMMON, POINTS[point]):
    for name, value in fields.items():
      if isinstance(value, list):
        fields[name] = tuple(value)
    c.update_from_flattened_dict(fields)
  return c


def points():
  """Returns the names of the {count} points."""
  return list(POINTS)
'''


def tables(root: files.Path) -> records.Tables:
  """Returns the tables of a sweep: of its records, or as published.

  Args:
    root: a sweep's folder, a folder with runs.parquet, or that file.

  Raises:
    FileNotFoundError, ValueError: none of these; names it.
  """
  path = files.path(root, '--root')
  if path.suffix == '.parquet':
    path = path.parent
  if path.is_dir() and records.sweep_folders(path):
    return records.tables(path)
  if (path / 'runs.parquet').exists():
    return records.load(path)
  raise FileNotFoundError(f'{root}: no runs: expected the --root of a sweep, '
                          'or a folder with its runs.parquet')


def config_of(root: files.Path, row: pd.Series) -> Any:
  """Returns the config of a run, mutable: from its folder or from its row."""
  folder = files.path(root) / str(row['run_id'])
  c = base.get_config(str(row['size']))
  if (folder / 'config.json').exists():
    tree = config_lib.plain(records.load_config(folder))
  elif isinstance(row.get('config'), str):
    # A table has what determines the training; the rest is as in base.py.
    tree = config_lib.complete(json.loads(row['config']))
    tree['seed'] = int(row['seed'])
    tree['data']['seed'] = int(row['order'])
  else:
    raise ValueError(f'{root}: no configs: expected the folder of a sweep, or '
                     'a runs.parquet with a column config')
  fields = study.flat(tree)
  # JSON has lists where configs have tuples.
  for name, value in fields.items():
    if isinstance(value, list):
      fields[name] = tuple(value)
  # A table may have an integer where base.py has a float.
  with c.ignore_type():
    c.update_from_flattened_dict(fields)
  return c


def sizes(known: advice.Scaling, config: Any, budget: float) -> pd.DataFrame:
  """Returns the sizes that can be built: width, params, step_flops.

  Those of the sweep, and widths of the same depth between and beyond them.

  Args:
    known: see advice.Scaling.
    config: of the start.
    budget: FLOPs; a larger width that they cannot train is left out.
  """
  import jax

  from audiorank import flops
  from audiorank import train_state
  # The width of the start is always among them.
  widths = {config.model.width}
  if 'size' in known.axes:
    tried = known.rows['width'].to_numpy(int)
    # Parameters grow with the square of the width.
    ladder = np.geomspace(tried.min(), tried.max() * advice.REACH ** .5, 15)
    # Steps of 32 would skip the widths between small ones.
    unit = 32
    if tried.min() < 64:
      unit = 8
    widths |= {*map(int, tried), *(max(1, round(w / unit)) * unit
                                   for w in ladder)}
  rows = []
  for width in sorted(widths):
    c = config.copy_and_resolve_references()
    set_width(c, width, config)
    cost = train_state.flops(c)['total'] * c.train.batch
    # Sizes ascend, so all further ones cost more. The smallest stays: the error
    # says what it costs.
    if rows and cost * known.rows['steps'].min() > budget:
      break
    # Shapes alone: nothing is allocated or compiled.
    shapes = jax.eval_shape(lambda key, c=c: train_state.init(c, key),
                            jax.random.key(0))
    rows.append({'width': width, 'step_flops': cost,
                 'params': flops.parameter_counts(shapes.params)['encoder']})
  return pd.DataFrame(rows)


def set_width(config: Any, width: int, origin: Any) -> None:
  """Sets a width, with heads by the rule of base.py or of the start's length.

  Args:
    config: changed in place.
    width: of the encoder.
    origin: the start's config.
  """
  before = origin.model
  rule = base.size(origin.copy_and_resolve_references(), config_lib.size_name(
      before.width, before.depth)).model.heads
  base.size(config, config_lib.size_name(width, before.depth))
  # A sweep that chose its heads keeps the width of a head.
  if rule != before.heads:
    config.model.heads = max(1, width * before.heads // before.width)
  # Heads divide the width.
  while width % config.model.heads:
    config.model.heads -= 1


def start_row(known: advice.Scaling) -> pd.Series:
  """Returns the row of the start of a Scaling."""
  rows, first = known.rows, known.start
  same = ((rows['params'] == first.params) & (rows['steps'] == first.steps)
          & (rows['hours_asked'] == first.hours))
  return rows[same].iloc[0]


def changed(origin: Any, point: advice.Point, width: int,
            hours_there: float) -> dict[str, Any]:
  """Returns the fields in which a proposed run differs from the start."""
  c = origin.copy_and_resolve_references()
  if width != origin.model.width:
    set_width(c, width, origin)
  c.data.hours = point.hours
  # 0 and the corpus's own hours would be two run ids of one training.
  if point.hours >= hours_there:
    c.data.hours = 0.  # All there is.
  times = point.steps / origin.train.steps
  if times != 1:
    c.train.steps = int(point.steps)
    # A longer run warms up and is evaluated at the same shares of its steps.
    for field in IN_STEPS:
      node, name = config_lib.parent(c, field)
      if node[name]:
        node[name] = max(1, round(node[name] * times))
  return difference(origin, c)


def difference(before: Any, after: Any) -> dict[str, Any]:
  """Returns {field: value} in which a config differs from another."""
  old = study.flat(config_lib.plain(before))
  new = study.flat(config_lib.plain(after))
  return {name: value for name, value in new.items()
          if name not in old or old[name] != value}


def proposals(known: advice.Scaling, origin: Any, several: list[advice.Point],
              table: pd.DataFrame) -> dict[str, dict[str, Any]]:
  """Returns {name of a point: its fields} of proposed runs.

  A run that is done already, or proposed twice, gets a new seed.
  """
  out: dict[str, dict[str, Any]] = {}
  tried = set(known.rows['hours_asked'])
  # Above all seeds of the sweep, so that a repeat is never a run that exists.
  seed = int(known.rows['seed'].max()) + 1
  # The runs that exist, by their inputs of the law.
  done = set(map(tuple, known.rows[['params', 'hours_asked', 'steps']]
                 .to_numpy(float)))
  for one in several:
    width = int(table.iloc[one.row]['width'])
    # Hours that the sweep has stay exact, so that configurations still match.
    if one.hours not in tried and one.hours < known.hours:
      one = one._replace(hours=float(f'{one.hours:.3g}'))
    fields = changed(origin, one, width, known.hours)
    name = (f'{config_lib.size_name(width, origin.model.depth)},'
            f'h={one.hours:.3g},steps={one.steps:.0f}')
    if (one.params, one.hours, one.steps) in done:
      fields['seed'] = seed
      name += f',seed={seed}'
      seed += 1
    done.add((one.params, one.hours, one.steps))
    out[name] = fields
  return out


def with_width(known: advice.Scaling, budget: float,
               built: pd.DataFrame) -> pd.DataFrame:
  """Returns the candidates of a budget, with the width of each.

  Raises:
    ValueError: the budget buys no run; says what the cheapest costs.
  """
  table = advice.candidates(known, budget, built)
  if not len(table):
    # The cheapest size at the fewest steps tried.
    least = float(built['step_flops'].min() * known.rows['steps'].min())
    raise ValueError(f'--budget={budget:g}: less than one run: expected at '
                     f'least {least:.3g} FLOPs')
  return table.merge(built[['params', 'width']], on='params', how='left')


def write_config(path: pathlib.Path, root: files.Path, origin: Any,
                 points: dict[str, dict[str, Any]], about: str) -> None:
  """Writes a config file of some points."""
  # The file has all that differs from base.py, so that it needs neither the
  # sweep's config file nor its command line.
  common = difference(base.get_config('en16-1'), origin)
  common['experiment'] = 'next'
  text = lambda tree: json.dumps(tree, indent=1)
  files.write_text(path, TEMPLATE.format(
      title=f'Next runs after {files.path(root).name}.', path=path, root=root,
      about=about, common=text(common), points=text(points),
      first=next(iter(points)), count=len(points)))


def main(root: str, price: float = 0.) -> None:
  """Runs the command with its flags, and the price of a chip-hour."""
  run(root, _BUDGET.value, _DECIDE.value, _HOURS.value, _OUT.value, price)


def run(root: str, budget: float | None = None, goal: str = '',
        hours: float | None = None, out: str | None = None,
        price: float = 0.) -> None:
  """Prints what to scale next and writes the config of the next runs.

  Args:
    root: of the sweep.
    budget: FLOPs of the next runs together; None for twice the best's.
    goal: an axis or a family to decide; '' to gain score.
    hours: of audio that there are; None for those of the corpus.
    out: the config file to write; None for next.py in the root.
    price: of a chip-hour; 0 for none.

  Raises:
    ValueError: the runs say nothing about any axis, or not about the goal;
      says what is needed.
  """
  rows = study.read(tables(root))
  # An axis is decided by the law, a family by further seeds.
  if goal and goal not in advice.AXES:
    decide_claim(root, rows, goal, budget, out)
    return
  result = advice.advise(rows, budget, hours)
  known = result.scaling
  if known is None:
    assert result.lacks is not None
    raise ValueError(f'{root}: no axis can be judged: needed: '
                     f'{wording.needed_text(result.lacks)}')
  lacking = {one.axis: one.needed for one in result.gains if one.needed}
  if goal in lacking:
    raise ValueError(f'--decide={goal}: needed: '
                     f'{wording.needed_text(lacking[goal])}')
  result = result._replace(rate=advice.rate(root, known), price=price)
  origin = config_of(root, start_row(known))
  table = with_width(known, result.budget, sizes(known, origin, result.budget))
  text, several = 'to gain score', advice.to_gain(known, table, result.budget)
  if goal:
    text = f'to decide the gain along {goal}'
    several = advice.to_decide(known, goal, table, result.budget)
  # Again, now only among sizes that can be built.
  best = advice.best(known, result.budget, table)
  points = proposals(known, origin, several, table)
  print('\n'.join([
      *wording.gain_words(result),
      *wording.best_words(result._replace(best=best)),
      *wording.point_words(text, dict(zip(points, several)),
                           advice.widths_after(known, several), result)]))
  save(root, origin, points, text, out)


def save(root: str, origin: Any, points: dict[str, dict[str, Any]],
         text: str, out: str | None) -> None:
  """Writes the config of points, and prints how to run it.

  Args:
    root: of the sweep.
    origin: the config that points differ from.
    points: {name: fields}.
    text: what they are for.
    out: the file; None for next.py in the root.
  """
  folder = files.path(root)
  if folder.suffix == '.parquet':
    folder = folder.parent
  path = files.path(out or folder / 'next.py')
  write_config(path, root, origin, points, f'{len(points)} runs, {text}.')
  print(f'python -m launch.sweep --config={path} --root={root}')


def decide_claim(root: str, rows: study.Study, name: str,
                 budget: float | None, out: str | None) -> None:
  """Prints and writes further seeds of a family's configurations.

  Args:
    root: of the sweep.
    rows: its study.
    name: of the family.
    budget: FLOPs; None for one more seed of each configuration.
    out: the config file; None for next.py in the root.

  Raises:
    ValueError: no such family, or one that no further seeds decide.
  """
  families = decide.families(rows)
  if name not in families:
    raise ValueError(
        f'--decide={name}: expected size, hours or steps, or one of '
        f'{", ".join(families) or "no family: nothing is compared"}'
        f'{cli.nearest(name, [*advice.AXES, *families])}')
  plan = decide.more_seeds(rows, name, budget)
  if isinstance(plan, claims.Needed):
    raise ValueError(f'--decide={name}: needed: {wording.needed_text(plan)}')
  points = {}
  # Points are written as differences from the first of them.
  origin = config_of(root, plan.runs.iloc[0])
  for _, row in plan.runs.iterrows():
    fields = difference(origin, config_of(root, row))
    fields['seed'] = int(row['new_seed'])
    points[f'{row["run_id"]},seed={row["new_seed"]}'] = fields
  print('\n'.join(wording.decide_words(plan)))
  save(root, origin, points, f'to decide the slope of {name}', out)
