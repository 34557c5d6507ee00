"""Whether a config can run is decided before anything is trained."""

import json
import math
import re
import shutil

import jax
import pytest

from audiorank import config as config_lib
from audiorank import data
from audiorank import objectives
from audiorank import records
from audiorank import validate
from audiorank.records import lock as lock_lib
from configs import base
from launch import evaluate as evaluate_command
from launch import grid
from launch import run_queue
from launch import train as train_command
from launch import work
from tests import processes
from tests import tiny


def changed(**changes):
  """Returns the paper's config with fields changed; '__' stands for a dot."""
  tree = config_lib.plain(base.get_config('en128-12'))
  for field, value in changes.items():
    node, name = config_lib.parent(tree, field.replace('__', '.'))
    node[name] = value
  return config_lib.frozen(tree)


def test_the_shipped_config_passes_on_any_mesh():
  validate.fields(changed(), 1)
  validate.fields(changed(), 256)
  validate.fields(changed(mesh__data=64, mesh__fsdp=4), 256)


@pytest.mark.parametrize('field, value, expected', [
    ('opt.lr', -1., 'more than 0'), ('opt.lr', 0, 'more than 0'),
    ('opt.b1', 1.5, 'at least 0 and less than 1'), ('opt.b2', 1., 'less than'),
    ('opt.weight_decay', -.1, 'at least 0'), ('opt.clip', -1, 'at least 0'),
    ('opt.final_lr_ratio', 5., 'at least 0 and at most 1'), ('opt.warmup', -2,
                                                             '0'),
    ('opt.warmup', 1.5, 'whole number'), ('opt.warmup', True, 'whole number'),
    ('train.init_scale', 0., 'more than 0'), ('train.max_skipped_steps', -1,
                                              'at least 0'),
    ('train.steps', -1, 'at least 0'), ('train.batch', 0, 'at least 1'),
    ('train.calibrate_batch_norm', 1, 'True or False'), ('data.threads', 0,
                                                         'at least 1'),
    ('data.hours', '10', 'a number of at least 0'),
    ('data.valid_fraction', 1., 'more than 0 and less than 1'),
    ('data.seed', 2 ** 32, 'less than 4294967296'), ('seed', -1, 'at least 0'),
    ('monitor.eval_every', -3, 'at least 0'), ('monitor.clips', 1,
                                               'at least 2'),
    ('monitor.num_evals', 1, 'at least 2'), ('monitor.first_eval', 0,
                                             'at least 1'),
    ('monitor.valid_clips', -8, 'at least 0'), ('model.depth', 0, 'at least'),
    ('model.mlp_ratio', 0, 'more than 0'), ('model.dtype', 'float', 'float32'),
    ('mask.ratio', 1., 'less than 1'), ('mask.group_size', 0, 'at least 1'),
    ('eval.grid_points', 0, 'at least 1 and at most 16'),
    ('eval.grid_points', 17, 'at most 16'), ('eval.max_epochs', 0, 'at least'),
    ('eval.batch', 0, 'at least 1'), ('eval.protocol', 'linear', 'logistic'),
    ('checkpoint.save_every', 0, 'at least 1'), ('objective', 'gan', 'mae, '),
    ('model.frontend', 'cepstrum', 'log_mel, pixels'),
    ('trackers', ('mlflow',), 'tensorboard')])
def test_an_impossible_value_names_its_field(field, value, expected):
  with pytest.raises(ValueError) as error:
    validate.fields(changed(**{field.replace('.', '__'): value}))
  assert str(error.value).startswith(field)
  item, = value if isinstance(value, tuple) else (value,)
  assert repr(item) in str(error.value)
  assert expected in str(error.value) and '\n' not in str(error.value)


def test_a_field_of_an_old_name_is_refused_with_the_new_one():
  config = changed(opt__final=.5)
  with pytest.raises(ValueError, match='opt.final: .*now opt.final_lr_ratio'):
    validate.fields(config)


@pytest.mark.parametrize('changes, text', [
    ({'model__heads': 3}, 'model.width 128 is not a multiple of model.heads 3'),
    ({'model__decoder__heads': 7}, 'multiple of model.decoder.heads 7'),
    ({'model__mels': 65}, 'model.mels 65: .*at most 64'),
    ({'data__crop_seconds': 20}, 'is 500 patches, but .*252 positions'),
    ({'data__crop_seconds': 5.02},
     '125 patches, not a multiple of mask.group_size'),
    ({'mask__ratio': .999}, 'keeps 0 of 250 patches'),
    ({'opt__warmup': 1_500_000}, 'less than train.steps 1500000'),
    ({'monitor__valid_clips': 100}, 'multiple of train.batch 256'),
    ({'monitor__layers': (12,)}, 'monitor.layers'),
    ({'monitor__layers': ('all', 1)}, 'monitor.layers'),
    ({'eval__every_layer': 1}, 'eval.every_layer'),
    ({'monitor__samples': ('low',)}, 'monitor.samples')])
def test_values_that_do_not_fit_each_other(changes, text):
  with pytest.raises(ValueError, match=text):
    validate.fields(changed(**changes))


@pytest.mark.parametrize('sides, devices, text', [
    ((-1, 1), 3, 'train.batch 256 is not a multiple of 3 devices'),
    ((2, 3), 8, 'train.batch 256 is not a multiple of 6 devices'),
    ((16, 1), 8, 'mesh.data 16 x mesh.fsdp 1: .*at most 8 devices'),
    ((-1, 3), 8, 'mesh.data -1 x mesh.fsdp 3'), ((0, 1), 8, 'mesh.data 0'),
    ((-1, -1), 8, 'mesh.fsdp -1')])
def test_the_mesh_needs_a_number_of_devices_and_no_device(sides, devices, text):
  with pytest.raises(ValueError, match=text):
    validate.fields(changed(mesh__data=sides[0], mesh__fsdp=sides[1]), devices)


def test_an_untrained_run_has_no_schedule():
  validate.fields(changed(train__steps=0))


def test_a_field_that_is_missing_is_named():
  tree = config_lib.plain(changed())
  del tree['opt']['b2']
  with pytest.raises(ValueError, match='opt.b2: missing'):
    validate.fields(config_lib.frozen(tree))


def test_every_number_of_the_config_has_bounds():
  """A field that is added to configs/base.py is added to a table too."""
  objective = {f'{name}.' for name in objectives.PARTS}
  mesh = {'mesh.data', 'mesh.fsdp'}  # Bounded by the devices.

  def numbers(tree, prefix=''):
    for key, value in tree.items():
      if isinstance(value, dict):
        yield from numbers(value, f'{prefix}{key}.')
      elif isinstance(value, (int, float)):
        yield f'{prefix}{key}'

  fields = {f for f in numbers(base.get_config().to_dict())
            if not f.startswith(tuple(objective))}
  assert fields - mesh == {*validate.WHOLE, *validate.REAL, *validate.SWITCHES}


def test_bounds_are_those_of_the_table():
  assert validate.within(.5, '>= 0, < 1') and not validate.within(1, '< 1')
  assert validate.within(1, '<= 1') and not validate.within(0, '> 0')
  assert not validate.within(math.nan, '>= 0')


def test_a_corpus_must_have_what_is_asked_of_it(corpus):
  config = lambda **changes: tiny.config(corpus, **changes)
  validate.corpus(config())
  usable = data.split(data.load(corpus), .2, 0)[0]
  most = data.clips_in(usable, 8000)
  validate.corpus(config(**{'monitor.clips': most}))
  for changes, text in (
      ({'monitor.clips': most + 1}, f'monitor.clips {most + 1}: .* {most} '),
      ({'monitor.valid_clips': 8_000}, 'monitor.valid_clips 8000'),
      ({'data.hours': 5.}, '5 hours'), ({'data.category': ('none',)},
                                        'category')):
    with pytest.raises(ValueError, match=text):
      validate.corpus(config(**changes))


@pytest.fixture
def task(tasks, tmp_path):
  """A copy of a task, to be damaged."""
  shutil.copytree(tasks / 'texture-v1-full', tmp_path / 'texture-v1-full')
  return tmp_path / 'texture-v1-full'


def test_tasks_are_read_before_training(task, corpus):
  config = tiny.config(corpus, **{'eval.tasks': str(task.parent)})
  validate.run(config)
  # The public archives have 48 kHz alone: any rate above the model's will do.
  (task / '16000').rename(task / '48000')
  validate.run(config)
  (task / '48000').rename(task / '8000')
  with pytest.raises(ValueError, match='clips at 8000 Hz'):
    validate.run(config)
  (task / '8000').rename(task / '16000')
  clip = next((task / '16000' / 'test').iterdir())
  clip.rename(task / 'aside')
  with pytest.raises(FileNotFoundError, match=clip.name):
    validate.run(config)
  (task / 'aside').rename(clip)
  about = json.loads((task / 'task_metadata.json').read_text())
  about['evaluation'] = ['top1_accuracy']
  (task / 'task_metadata.json').write_text(json.dumps(about))
  with pytest.raises(ValueError, match="no measure 'top1_accuracy'.*top1_acc"):
    validate.run(config)


def test_what_runs_share_is_read_once(corpus, tasks, monkeypatch):
  counts = {'corpus': 0, 'tasks': 0}
  for name, check in (('corpus', validate.corpus), ('tasks', validate.tasks)):
    def counted(config, name=name, check=check):
      counts[name] += 1
      check(config)
    monkeypatch.setattr(validate, name, counted)
  configs = [tiny.config(corpus, seed=seed, **{'eval.tasks': str(tasks)})
             for seed in range(5)]
  other = tiny.config(corpus, **{'eval.tasks': str(tasks), 'data.hours': .005})
  read = set()
  for one in [*configs, other]:
    validate.run(one, 1, read)
  assert counts == {'corpus': 2, 'tasks': 1}


def by_train(config):
  train_command.checked(config)


def by_sweep(config):
  configs = {'point': config}
  grid.check(configs, None)
  grid.resolve(configs, lambda config: pytest.fail('a dataset is written'))
  grid.check_corpus(config for config, _ in grid.runs(configs).values())


def edited(folder, config, changes):
  """Writes a run's folder, of which somebody then edits config.json."""
  records.open_run(folder, config)
  tree = json.loads((folder / 'config.json').read_text())
  for field, value in changes.items():
    node, name = config_lib.parent(tree, field)
    node[name] = value
  (folder / 'config.json').write_text(json.dumps(tree))


def by_workdir(folder):
  """Returns what launch.train says of a folder with a config.json."""
  with processes.flags_of(train_command, workdir=str(folder)):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
      config = records.load_config(folder)
      run = run_queue.Claim(folder, config, lock_lib.Lock(folder), None)
      train_command.train_one(run, lambda step: False, work.Report())
  return str(caught.value)


def by_worker(folder, config):
  """Returns why a worker did not train a run."""
  grid.write_index(folder.parent, 'A title', 'tiny', {
      folder.name: (config, run_queue.entry(config))})
  board = run_queue.Board(folder.parent, [folder.name])
  assert work.Worker(board, run_queue.ROLES, 1, 1, work.Report()).run() == 0
  return json.loads((folder / 'FAILED').read_text())['error']


BAD = [
    {'opt.lr': -1.}, {'train.batch': 7}, {'monitor.clips': 10 ** 6},
    {'data.hours': 1e9}, {'data.root': '/no/such'}, {'data.root': 's3://a/b'},
    {'eval.tasks': ''}, {'eval.tasks': '/no/such'}, {'eval.tasks': 's3://a/b'},
    {'eval.task_names': ('nowhere',)}, {'data.category': ('nothing',)},
    {'monitor.samples': ('nothing',)}, {'monitor.samples': ('center',)},
    {'monitor.layers': (9,)}, {'mesh.fsdp': 0}, {'data.mixture': ('x',)},
    {'data.mixture': ('/no/such=1',)}, {'data.crop_seconds': 100.},
    {'monitor.crop_seconds': 100.}, {'opt.warmup': 6}, {'trackers': ('x',)},
    {'eval.protocol': 'x'}, {'eval.grid_points': 0}, {'objective': 'x'},
    {'seed': -1}]
# Of a run's folder, which may have been moved away from its corpus.
HINT = re.compile(r' \(moved\? --\w+=FOLDER says where .*\)$')


@pytest.mark.parametrize('changes', BAD, ids=str)
def test_all_entrances_refuse_a_config_with_one_line(
    corpus, tasks, changes, monkeypatch, tmp_path):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  whole = tiny.config(corpus, **{'eval.tasks': str(tasks)})
  lines = []
  for entrance in (by_train, by_sweep):
    config = tiny.config(corpus, **{'eval.tasks': str(tasks)})
    config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
      entrance(config)
    lines.append((type(caught.value), str(caught.value)))
  assert lines[0] == lines[1] and '\n' not in lines[0][1]
  line = lines[0][1]
  folder = tmp_path / records.run_id(whole)
  edited(folder, whole, changes)
  assert HINT.sub('', by_workdir(folder)) == line
  assert HINT.sub('', by_worker(folder, whole)) == line
  assert not list(folder.glob('checkpoints/*'))
  if set(changes) <= set(validate.PREDICTOR):
    with processes.flags_of(evaluate_command, like=str(folder)):
      with pytest.raises(ValueError) as caught:
        evaluate_command.protocol()
    assert str(caught.value) == f"{folder / 'config.json'}: {line}"


# Types that no flag and no config file gives, but an editor does.
@pytest.mark.parametrize('changes, line', [
    ({'train.batch': '8'}, "train.batch '8': expected a whole number"),
    ({'monitor.layers': 5}, 'monitor.layers 5: expected a tuple'),
    ({'opt.lr': 10 ** 400}, 'opt.lr 1000'), ({'opt.lr': None}, 'opt.lr None'),
    ({'data.root': 5}, 'data.root 5: expected a folder'),
    ({'data.mixture': None}, 'data.mixture None: expected a list'),
    ({'data.mixture': [5]}, r'data.mixture \[5\]: expected a list'),
    ({'mesh.data': -1, 'mesh.fsdp': 0}, 'mesh.data -1 x mesh.fsdp 0')], ids=str)
def test_types_that_only_an_editor_writes(corpus, tasks, changes, line,
                                          tmp_path):
  whole = tiny.config(corpus, **{'eval.tasks': str(tasks)})
  edited(tmp_path / records.run_id(whole), whole, changes)
  assert re.match(line, by_worker(tmp_path / records.run_id(whole), whole))


def test_where_a_run_is_not_scored_its_tasks_may_be_elsewhere(corpus, tasks):
  config = tiny.config(corpus, **{'eval.tasks': '/no/such'})
  work.check(config, scored=False)
  with pytest.raises(FileNotFoundError, match='/no/such.*--tasks=FOLDER'):
    work.check(config, scored=True)
  # Nor does a machine that scores need the corpus.
  validate.scoring(tiny.config('/no/such', **{'eval.tasks': str(tasks)}))


def test_both_entrances_take_what_can_run(corpus, tasks, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  checked = []
  for entrance in (by_train, by_sweep):
    config = tiny.config(corpus, **{'eval.tasks': str(tasks)})
    entrance(config)
    checked.append(config.to_dict())
  assert checked[0] == checked[1]


def test_a_task_that_the_synthetic_dataset_lacks_is_named():
  config = tiny.config('')
  config.eval.tasks = ''
  config.eval.task_names = ('scen',)
  config.data.world.tasks = ('scene',)
  with pytest.raises(ValueError, match='Did you mean scene-v1-full'):
    validate.synthetic_tasks(config)
  config.eval.task_names = ('scene-v1-full',)
  validate.synthetic_tasks(config)
