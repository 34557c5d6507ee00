"""Predicts a larger run before it is trained; the report scores the prediction.

  python -m launch.forecast --root=runs/quickstart \
      --config=configs/quickstart.py --config.model.width=128
  python -m launch.sweep --root=runs/quickstart \
      --config=configs/quickstart.py --config.model.width=128

--point=NAME predicts one of the points.

From the runs of a sweep that are done, RankMe, validation loss, score and the
score of every task of each point are predicted, with 95 % intervals for one
run, and written with date and digest to <root>/forecasts/<run_id>.json. A run
that has begun is refused, and so is a second forecast of one run.
"""

import datetime
import inspect
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags
import numpy as np

from audiorank import baselines
from audiorank import config as config_lib
from audiorank import files
from audiorank import flops
from audiorank.analysis import advice
from audiorank.analysis import claims
from audiorank.analysis import forecast
from audiorank.analysis import study
from audiorank.report import wording
from launch import cli
from launch import grid
from launch import next as next_runs

_ROOT = flags.DEFINE_string('root', '', 'Folder of the sweep that is done.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/ with the runs to predict.')
_POINT = flags.DEFINE_string('point', '', 'One of its points; all otherwise.')
_SCALE = flags.DEFINE_enum('scale', None, ['paper', 'small', 'smoke'],
                           'Scale of an experiment: see configs/scales.py.')


def target_of(config: Any, hours: float) -> forecast.Target:
  """Returns what a law is asked of a config.

  Args:
    config: of the run.
    hours: of audio that there are, where the config takes all.
  """
  import jax

  from audiorank import train_state
  # Shapes alone: nothing is allocated.
  shapes = jax.eval_shape(lambda key: train_state.init(config, key),
                          jax.random.key(0))
  cost = train_state.flops(config)['total']
  return forecast.Target(
      flops.parameter_counts(shapes.params)['encoder'],
      # 0 stands for all hours of the corpus.
      config.data.hours or hours, config.train.steps,
      cost * config.train.batch * config.train.steps)


def settings_of(config: Any) -> dict[str, Any]:
  """Returns what has to be equal in runs that predict a config's run."""
  tree = study.flat(baselines.configuration(config))
  # The inputs of the law, and what follows from them.
  return {name: value for name, value in tree.items()
          if name not in ('model.width', 'model.depth', 'model.heads',
                          'data.hours', 'train.steps', 'opt.warmup')}


def group_of(root: str, rows: study.Study, config: Any
             ) -> tuple[np.ndarray, int]:
  """Returns the labels of the trained runs, and that of a config's settings.

  Depth is a setting where the sweep has the config's depth at several widths.

  Raises:
    ValueError: no run has these settings; names a field that differs.
  """
  wanted = settings_of(config)
  differ: list[list[str]] = []
  # First with depth as a setting, which compares more alike runs.
  for by_depth in (True, False):
    labels = advice.settings(rows.trained, rows.fields, by_depth)
    for label in np.unique(labels):
      mine = rows.trained[labels == label]
      theirs = settings_of(next_runs.config_of(root, mine.iloc[0]))
      other = [f'{name} {theirs.get(name)!r} there, {value!r} here'
               for name, value in wanted.items() if theirs.get(name) != value]
      deep = by_depth and (mine['depth'] != config.model.depth).any()
      if not other and not deep:
        return labels, int(label)
      if other:
        differ.append(other)
  # The settings that come nearest.
  raise ValueError(f'{root}: no run has the settings of this config: '
                   f'{"; ".join(min(differ, key=len))}')


def predicted(root: str, rows: study.Study, config: Any) -> dict[str, Any]:
  """Returns the forecast of a config's run as JSON.

  Raises:
    ValueError: it cannot be predicted from these runs; says what is needed.
  """
  if not len(rows.trained):
    raise ValueError(f'{root}: no scored run: expected a sweep that is done')
  labels, group = group_of(root, rows, config)
  target = target_of(config, advice.most_hours(rows))
  several = forecast.predict(rows, target, labels, group)
  if isinstance(several, claims.Needed):
    raise ValueError(f'{root}: this run cannot be predicted: needed: '
                     f'{wording.needed_text(several)}')
  # UTC, so that forecasts of several machines can be put in order.
  now = datetime.datetime.now(datetime.UTC)
  return forecast.as_tree(several, config, rows, target, now)


def path_of(root: pathlib.Path, config: Any) -> pathlib.Path:
  """Returns the file of a run's forecast.

  Raises:
    ValueError: the run has begun, or there is a forecast of it.
  """
  run_id = config_lib.run_id(config)
  path = root / forecast.FOLDER / f'{run_id}.json'
  if path.exists():
    raise ValueError(f'{path}: this run has a forecast already: it is written '
                     'once')
  if forecast.started(root / run_id):
    raise ValueError(f'{root / run_id}: this run has begun: a forecast is '
                     'written before that')
  return path


def configs_of(module: Any) -> dict[str, Any]:
  """Returns {point: config} of the flags.

  Raises:
    ValueError: no such point; names the nearest.
  """
  if not hasattr(module, 'points'):
    raise ValueError(f'{module.__file__}: no points(): a forecast needs one')
  scale = _SCALE.value
  # points() takes a scale only where the experiment has several.
  if not inspect.signature(module.points).parameters:
    scale = None
  configs = grid.points(module, cli.overrides('config'), scale)
  if not _POINT.value:
    return configs
  if _POINT.value not in configs:
    raise ValueError(f'--point={_POINT.value}: no such point of '
                     f'{module.__file__}{cli.nearest(_POINT.value, configs)}')
  return {_POINT.value: configs[_POINT.value]}


def main(argv: list[str]) -> None:
  """Runs the command."""
  import jax

  from launch import synthetic
  del argv
  # Nothing is trained here: devices are left to those who train.
  jax.config.update('jax_platforms', 'cpu')
  if not _ROOT.value or _CONFIG.value is None:
    raise ValueError('expected --root=DIR of a sweep and --config=FILE')
  configs = configs_of(cli.config_module('config'))
  root = files.path(_ROOT.value, '--root')
  rows = study.read(next_runs.tables(root))
  # None: the run may be trained on another machine.
  grid.check(configs, None)
  grid.resolve(configs, lambda config: synthetic.dataset(
      root / 'world', config))
  # With overrides, points may be the same run.
  once = {config_lib.run_id(c): (name, c) for name, c in configs.items()}
  for point, config in once.values():
    path = path_of(root, config)
    tree = predicted(str(root), rows, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, tree)
    print('\n'.join([f'{point}:', *wording.forecast_words(tree), str(path)]))


if __name__ == '__main__':
  cli.run(main)
