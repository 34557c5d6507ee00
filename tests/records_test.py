"""Identity of runs, whole writes, tables."""

import json
import math

import pandas as pd
import pytest

from audiorank import config as config_lib
from audiorank import files
from audiorank import records
from audiorank.records import sweep
from configs import base
from tests import tiny


def test_one_and_one_point_zero_are_one_run():
  a = records.plain(base.get_config('en128-12'))
  b = base.get_config('en128-12').to_dict()
  b['mask']['group_size'] = 2.0
  b['opt']['lr'] = float(b['opt']['lr'])
  assert records.run_id(a) == records.run_id(b)


def test_runs_with_the_old_names_of_fields_keep_their_ids():
  config = base.get_config('en128-12')
  config.update_from_flattened_dict({
      'trackers': ('wandb',), 'data.category': ('speech', 'music'),
      'monitor.layers': (0, 5), 'monitor.samples': ('valid',),
      'train.max_skipped_steps': 2, 'model.frontend': 'pixels'})
  old = config_lib.hashed(records.plain(config))
  assert (old['track'], old['data']['category'], old['monitor']['layers']) == (
      'wandb', 'speech,music', '0,5')
  assert set(old['train']) >= {'skip', 'call', 'calibrate'}
  assert records.run_id(old) == records.run_id(config)
  assert config_lib.complete(old) == records.plain(config)
  # The digest of a config of the first version.
  assert records.run_id(base.get_config('en768-12')) == '5c2f7318a177'


def test_identity_ignores_where_and_how_scored_but_not_what_is_trained():
  a = base.get_config('en128-12')
  for field, value in {'data.root': '/elsewhere', 'eval.tasks': 't',
                       'experiment': 'other', 'checkpoint.save_every': 7,
                       'eval.grid_points': 1, 'mesh.fsdp': 4}.items():
    b = base.get_config('en128-12')
    b.update_from_flattened_dict({field: value})
    assert records.run_id(a) == records.run_id(b), field
  for field, value in {'seed': 1, 'opt.lr': 1e-3, 'mask.ratio': .5,
                       'data.hours': 10., 'train.steps': 5,
                       'model.dtype': 'bfloat16', 'data.sha256': 'x',
                       'monitor.clips': 10}.items():
    b = base.get_config('en128-12')
    b.update_from_flattened_dict({field: value})
    assert records.run_id(a) != records.run_id(b), field


def test_json_round_trip_keeps_the_run():
  config = base.get_config('en128-12')
  again = json.loads(json.dumps(records.plain(config)))
  assert records.run_id(again) == records.run_id(config)
  assert records.frozen(again).model.width == 128


@pytest.mark.parametrize('bad', [lambda: 0, math.nan, math.inf, object()])
def test_what_json_cannot_carry_is_refused_by_name(bad):
  with pytest.raises(ValueError, match=r'config\.opt\.lr'):
    records.plain({'opt': {'lr': bad}})


def test_another_run_in_the_folder_is_refused_and_named(tmp_path):
  records.open_run(tmp_path, base.get_config('en128-12'))
  other = base.get_config('en128-12')
  other.opt.lr = 1e-3
  with pytest.raises(ValueError, match=r'opt\.lr: 0\.0003 there, 0\.001 here'):
    records.open_run(tmp_path, other)
  assert records.load_config(tmp_path).opt.lr == 3e-4


def test_other_evaluation_settings_reopen_a_done_run(tmp_path):
  config = base.get_config('en128-12')
  records.open_run(tmp_path, config)
  records.write_json(tmp_path / 'DONE', {})
  records.open_run(tmp_path, config)
  assert records.state(tmp_path) == 'done'
  config.data.threads = 2
  records.open_run(tmp_path, config)
  assert records.state(tmp_path) == 'done'
  assert records.load_config(tmp_path).data.threads == 2
  config.eval.grid_points = 1
  records.open_run(tmp_path, config)
  assert records.state(tmp_path) == 'trained'


def test_a_folder_from_before_a_field_was_is_as_it_was(tmp_path):
  config = base.get_config('en128-12')
  tree = records.plain(config)
  del tree['train']['steps_per_call'], tree['latent']
  records.write_json(tmp_path / 'config.json', tree)
  records.write_json(tmp_path / 'DONE', {})
  records.open_run(tmp_path, config)
  assert records.state(tmp_path) == 'done'
  assert records.read_json(tmp_path / 'config.json') == tree


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'r.json'
  records.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    records.write_json(path, {'a': object()})
  assert records.read_json(path) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['r.json']


def test_nan_becomes_null_in_a_record_never_zero(tmp_path):
  records.write(tmp_path, 'monitor', 3, {'value': math.nan, 'n': [math.inf]})
  (record,) = records.read(tmp_path, 'monitor')
  assert record['value'] is None and record['n'] == [None]


def test_cut_metrics_drops_later_rows_and_a_half_written_one(tmp_path):
  rows = [records.line({'step': s, 'loss': 1.}) for s in (1, 2, 3)]
  (tmp_path / 'metrics.jsonl').write_text(''.join(rows) + '{"step": 4, "lo')
  records.cut_metrics(tmp_path, 2)
  assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(rows[:2])


def test_a_damaged_json_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json: not a JSON file'):
    records.load_config(tmp_path)
  with pytest.raises(FileNotFoundError, match='folder of a run'):
    records.load_config(tmp_path / 'none')


def test_what_is_damaged_costs_itself_alone(tmp_path):
  for seed in (0, 1):
    config = base.get_config('en128-12')
    config.seed = seed
    workdir = tmp_path / records.run_id(config)
    records.open_run(workdir, config)
    (workdir / 'metrics.jsonl').write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n')
  whole = records.collect(tmp_path)
  assert list(whole.runs['run_id']) == sorted(
      w.name for w in records.run_folders(tmp_path))
  curves = records.curves(tmp_path)
  assert list(curves['step']) == [1, 3, 1, 3]
  assert [row['step'] for row in records.read_lines(
      workdir / 'metrics.jsonl')] == [1, 3]
  (workdir / 'records').mkdir(exist_ok=True)
  (workdir / 'records' / 'monitor-00000000.json').write_text('')
  rest = records.collect(tmp_path)
  assert len(rest.runs) == 1 and workdir.name not in set(rest.runs['run_id'])
  for other in records.run_folders(tmp_path):
    (other / 'records').mkdir(exist_ok=True)
    (other / 'records' / 'monitor-00000000.json').write_text('[')
  with pytest.raises(ValueError, match='not a JSON file'):
    records.collect(tmp_path)


def test_collecting_nothing_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='no runs'):
    records.collect(tmp_path)


def test_names_carry_what_tells_runs_apart():
  from audiorank.records import sweep
  row = {'size': 'en32-2', 'hours': .5, 'mask_ratio': .75, 'untrained': False,
         'steps': 100, 'lr': 1e-3, 'batch': 16, 'crop_seconds': 1.,
         'heads': 1, 'decoder': '32-1', 'objective': 'mae', 'category': 'all',
         'order': 0}
  runs = [{**row, 'run_id': str(i), 'seed': i} for i in range(2)]
  runs.append({**row, 'run_id': 'u', 'seed': 0, 'untrained': True})
  sweep.name_runs(runs)
  assert [r['name'] for r in runs] == [
      'en32-2 0.5 h mask 0.75 seed 0', 'en32-2 0.5 h mask 0.75 seed 1',
      'en32-2 untrained']
  # What most runs share need not be said of them.
  runs = [{**row, 'run_id': str(i), 'seed': 0, 'lr': lr}
          for i, lr in enumerate((1e-3, 1e-3, 1e-3, 3e-3))]
  sweep.name_runs(runs)
  assert [r['name'] for r in runs] == [*3 * ['en32-2 0.5 h mask 0.75'],
                                       'en32-2 0.5 h mask 0.75 lr 0.003']


def test_settings_are_not_changed_under_a_live_worker(tmp_path):
  from audiorank.records import lock as lock_lib
  config = base.get_config('en128-12')
  records.open_run(tmp_path, config)
  held = lock_lib.Lock(tmp_path)
  config.eval.grid_points = 1
  with pytest.raises(lock_lib.LockHeld, match='is working on it'):
    records.open_run(tmp_path, config)
  held.release()
  records.open_run(tmp_path, config)
  assert records.load_config(tmp_path).eval.grid_points == 1


@pytest.mark.parametrize('text', ['{}', '[1]', '7', '{"train": 3}'])
def test_what_is_no_config_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  config = base.get_config('en32-2')
  for opens in (lambda: records.load_config(tmp_path),
                lambda: records.open_run(tmp_path, config)):
    with pytest.raises(ValueError, match='config.json: not the config of a'):
      opens()


def test_what_is_published_names_no_place(tmp_path):
  config = base.get_config('en128-12')
  config.data.root = config.eval.tasks = str(tmp_path / 'secret')
  workdir = tmp_path / 'sweep' / records.run_id(config)
  records.open_run(workdir, config)
  records.publish(tmp_path / 'sweep', tmp_path / 'out')
  made = records.load(tmp_path / 'out')
  assert list(made.runs['run_id']) == [records.run_id(config)]
  about = records.read_json(tmp_path / 'out' / 'about.json')
  assert about['runs'] == [records.run_id(config)] and about['versions']['jax']
  for file in (tmp_path / 'out').iterdir():
    assert b'secret' not in file.read_bytes()


def test_scores_by_another_protocol_stand_beside_the_own(monkeypatch):
  runs = pd.DataFrame({'run_id': list('abc'), 'score': [.1, .2, .3],
                       'scored_tasks': 2})
  own = records.Tables(runs, runs, runs.assign(task='pitch'))
  other = runs.assign(score=[.4, .5, .6], scored_tasks=[2, 1, 2])
  tasks = runs.assign(protocol='knn', task='pitch')
  monkeypatch.setattr(sweep, 'tables', lambda root: records.Tables(
      other[:2], other, tasks))
  both = sweep.with_scores(own, 'knn').runs
  # b lacks a task, and c a run.
  assert both['score_knn'].fillna(0).tolist() == [.4, 0, 0]
  assert both['score'].tolist() == [.1, .2, .3]
  with pytest.raises(ValueError, match='other tasks: beat, pitch in one'):
    sweep.with_scores(own._replace(tasks=tasks.assign(task='beat')), 'knn')
  tasks.loc[0, 'protocol'] = 'hear-g8'
  with pytest.raises(ValueError, match='of one protocol, found hear, knn'):
    sweep.with_scores(own, 'knn')
  tasks['protocol'] = 'knn'
  with pytest.raises(ValueError, match='none of its runs'):
    sweep.with_scores(own._replace(runs=runs.assign(run_id='x')), 'knn')


def test_the_runs_of_several_sweeps_are_shown_as_one_sweep(tmp_path):
  """A run that both have is taken from where it is done."""
  from audiorank.records import sweep as sweep_lib
  configs = [tiny.config('x', seed=seed) for seed in range(3)]
  ids = [records.run_id(c) for c in configs]
  roots, joined = (tmp_path / 'a', tmp_path / 'b'), tmp_path / 'joined'
  for root, own in zip(roots, ((0, 1), (1, 2))):
    for k in own:
      records.open_run(root / ids[k], configs[k])
    files.write_json(root / 'sweep.json', {
        'title': f'Sweep {root.name}', 'runs': [ids[k] for k in own]})
  files.write_json(roots[1] / ids[1] / 'DONE', {})
  joined.mkdir()
  records.joined(roots, joined)
  assert records.index(joined)['title'] == 'Sweep a; Sweep b'
  assert {f.name for f in records.run_folders(joined)} == set(ids)
  assert (joined / ids[0]).resolve() == roots[0] / ids[0]
  assert (joined / ids[1]).resolve() == roots[1] / ids[1]
  assert set(sweep_lib.tables(joined).runs['run_id']) == set(ids)
  for root, error in ((tmp_path / 'none', FileNotFoundError),
                      ('gs://bucket/a', ValueError)):
    with pytest.raises(error, match='none: no runs|must be on a disk'):
      records.joined([roots[0], root], joined)
