"""Points of others in a report, the board, and scores without audio."""

import importlib
import json
import pathlib
import types

import numpy as np
import pandas as pd
import pytest

from audiorank import evaluate
from audiorank import figures
from audiorank import hub
from audiorank import labelled
from audiorank import laws
from audiorank import records
from audiorank import report
from audiorank import train
from audiorank.analysis import law
from audiorank.records import score_table
from audiorank.report import board
from audiorank.report import tables
from audiorank.report import wording
from launch import evaluate as launched
from tests import processes
from tests import tiny


def rank(value=20., layer='final'):
  return {'layer': layer, 'rank': {'value': value, 'low': value - 1,
                                   'high': value + 1, 'n': 500}}


def scored(task='bells', value=.7, protocol='knn', **more):
  return {'task': task, 'task_sha256': 'abc', 'metric': 'top1_acc',
          'result': {'score': value, 'low': value - .1, 'high': value + .1,
                     'clips': 40, 'protocol': protocol}, **more}


def record(name='hf:some/one', tasks=('bells', 'birds'), value=.7, at=20.,
           **more):
  return {'versions': {}, 'encoder': {
      'checkpoint': name, 'step': None, 'width': 768, 'parameters': 10,
      'licence': 'mit', 'revision': 'f' * 40},
          'rank': {**rank(at), **more},
          **{task: scored(task, value) for task in tasks}}


def write(path, content):
  path.write_text(json.dumps(content))
  return path


def test_a_board_has_encoders_tasks_and_layers(tmp_path):
  layers = [rank(9., 0), rank(20.)]
  one = record(layers=layers)
  one['bells'] |= {
      'layers': [{'layer': 0, 'score': .8, 'low': .7, 'high': .9},
                 {'layer': 'final', 'score': .7, 'low': .6, 'high': .8}],
      'best': {'layer': 0, 'score': .8}}
  # Scores of features are not those of the encoder.
  one['bells.mfcc'] = scored('bells', .2)
  write(tmp_path / 'a.json', one)
  write(tmp_path / 'b.json', record('runs/<mine>', ('bells',), .6, 30.))
  rows = board.table(board.read([tmp_path]))
  assert len(rows) == 5
  first = rows.iloc[0]
  assert first['score'] == '0.800' and first['RankMe'] == '9.0'
  assert first['measure'] == 'top1_acc (best on validation)'
  assert first['interval'] == '0.700 to 0.900'
  mean = rows[rows['task'] == 'mean of 2 tasks'].iloc[0]
  assert mean['score'] == '0.700' and mean['layer'] == 'final'
  out = board.write([tmp_path], tmp_path / 'board.html')
  text = out.read_text()
  assert 'runs/&lt;mine&gt;' in text and 'class="sorted"' in text
  assert '2 encoders' in text and 'ffffffffffff' in text
  assert 'cannot be compared' not in text
  other = record('x')
  other['bells']['result']['protocol'] = 'hear'
  write(tmp_path / 'c.json', other)
  assert 'hear, knn) cannot be compared' in board.page(board.read([tmp_path]))


def test_the_mean_of_xares_is_weighted_by_sizes(tmp_path):
  one = {'weight': 300, 'result': {'score': .8, 'se': .02}}
  two = {'weight': 100, 'result': {'score': .4, 'se': .04}}
  mean = evaluate.xares_mean([one, two, {'result': {'score': 0.}}])
  assert mean['score'] == pytest.approx(.7) and mean['tasks'] == 2
  se = np.hypot(.75 * .02, .25 * .04)
  assert mean['high'] - mean['score'] == pytest.approx(1.96 * se)
  assert evaluate.xares_mean([one]) is None
  write(tmp_path / 'a.json', {**record(), 'xares_mean': mean})
  rows = board.table(board.read([tmp_path])).set_index('task')
  row = rows.loc['mean of 2 tasks, weighted as in X-ARES']
  assert row['score'] == '0.700' and row['interval'] == '0.665 to 0.735'
  # A result: it gives a file no other name.
  assert evaluate.identity({'xares_mean': mean}) == {}


def test_the_command_of_twenty_encoders_names_twenty():
  page = (pathlib.Path(board.__file__).parents[2] / 'launch' / 'README.md'
          ).read_text(encoding='utf-8')
  listed = page.split('for name in ')[1].split('; do')[0].replace('\\', '')
  names = listed.split()
  assert len(set(names)) == len(names) == 20
  assert all(hub.NAME.fullmatch(name) for name in names)


def test_what_is_no_record_is_refused_in_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such file'):
    board.read([tmp_path / 'none.json'])
  with pytest.raises(FileNotFoundError, match='no .json in it'):
    board.read([tmp_path])
  (tmp_path / 'a.json').write_text('{')
  with pytest.raises(ValueError, match='a.json: no JSON'):
    board.read([tmp_path])
  write(tmp_path / 'a.json', {'a': 1})
  with pytest.raises(ValueError, match='a.json: no record of launch.evaluate'):
    board.read([tmp_path])
  bare = {k: v for k, v in record().items() if k != 'rank'}
  path = write(tmp_path / 'a.json', bare)
  with pytest.raises(ValueError, match='a point needs a rank and a score'):
    board.points([path])
  (tmp_path / 'p.csv').write_text('name,rank\nx,3\n')
  with pytest.raises(ValueError, match="no column 'score'"):
    board.points([tmp_path / 'p.csv'])
  (tmp_path / 'p.csv').write_text('name,rank,score\nx,-3,.5\n')
  with pytest.raises(ValueError, match='the rank above 0'):
    board.points([tmp_path / 'p.csv'])


def test_points_lie_on_the_law_or_beside_it(tmp_path):
  rng = np.random.default_rng(0)
  x = np.geomspace(8, 100, 20)
  runs = pd.DataFrame({'rank': x, 'score': .9 - 1.2 * x ** -.6
                       + .004 * rng.normal(size=20)})
  fit = laws.fit('saturating', runs, x='rank', y='score')
  (tmp_path / 'p.csv').write_text(
      'name,rank,score\non,30,%f\nabove,30,.95\nfar,300,.1\n' % (
          .9 - 1.2 * 30 ** -.6))
  path = write(tmp_path / 'a.json', record(value=.5))
  own = board.points([tmp_path / 'p.csv', path])
  assert own[3].score == .5 and own[3].tasks == ('bells', 'birds')
  tasks = pd.DataFrame({'task': ['bells', 'birds'], 'protocol': ['knn'] * 2})
  rows = board.placed(own, fit, runs, tasks)
  assert rows['on the law'].tolist() == [
      'yes', 'no, above', 'no, below, beyond the runs', 'no, below']
  assert rows['compared'].tolist() == ['tasks unknown, clips unknown'] * 3 + [
      'same tasks and protocol, clips unknown']
  assert board.other_score(own[3]._replace(protocol='hear'), tasks) == [
      'another protocol (hear)']
  none = board.placed(own, None, runs, tasks)
  assert set(none['on the law']) == {'no law is fitted'}


def test_a_rank_of_other_clips_is_not_comparable(tmp_path):
  config = json.dumps({'monitor': {'crop_seconds': 1.03},
                       'data': {'sha256': 'abc'}})
  x = np.geomspace(8, 100, 12)
  runs = pd.DataFrame({'rank': x, 'score': .9 - 1.2 * x ** -.6, 'clips': 500,
                       'config': config})
  fit = laws.fit('saturating', runs[['rank', 'score']], x='rank', y='score')
  tasks = pd.DataFrame({'task': ['bells', 'birds'], 'protocol': ['knn'] * 2})
  one = record()
  # As launch.evaluate --corpus writes it.
  one['corpus'] = {'sha256': 'abc', 'seconds': 1.03, 'clips': 500}
  (same,) = board.points([write(tmp_path / 'a.json', one)])
  others = [same._replace(clips=30_000), same._replace(seconds=10.),
            same._replace(corpus='def'), same._replace(protocol='hear')]
  rows = board.placed([same, *others], fit, runs, tasks)
  assert rows['compared'].tolist() == [
      'same tasks and protocol, same clips',
      'RankMe of 30,000 clips, the runs of 500',
      'RankMe of clips of 10 s, the runs of 1.03 s',
      'RankMe of another corpus', 'another protocol (hear)']
  assert rows['on the law'].tolist()[1:] == ['not comparable'] * 4
  assert rows['on the law'][0].startswith(('yes', 'no'))


def test_layers_reach_the_tables():
  run = {'run_id': 'a', 'untrained': False, 'steps': 3}
  one = {'step': 3, **scored(value=.7), 'embedding_type': 'scene',
         'settings': {'protocol': 'knn'},
         'layers': [{'layer': 0, 'score': .8}, {'layer': 'final', 'score': .7}],
         'best': {'layer': 0, 'score': .8}}
  row = score_table.scored(run, one)
  means = score_table.means([row], {})
  assert means['best_layer_score'] == .8 and means['score_layer_0'] == .8
  assert means['score'] == .7
  runs = pd.DataFrame([{
      **run, **means, 'name': 'one', 'width': 8, 'rank': 5., 'rank_token': 6.,
      'rank_layer_0': 7., 'rank_token_layer_0': 8.},
      {**run, 'run_id': 'b', 'name': 'two', 'width': 8, 'rank': 4.}])
  shown = tables.layers(types.SimpleNamespace(runs=runs))
  (cells,) = shown.to_dict('records')
  assert cells['RankMe, block 0'] == '7.0 | 8.0'
  assert cells['RankMe, final'] == '5.0 | 6.0'
  assert cells['score, best layer'] == '0.800'


@pytest.mark.parametrize('grouped', [False, True])
def test_embeddings_are_scored_by_labels_alone(tmp_path, grouped):
  rng = np.random.default_rng(0)
  label_N = np.repeat(['cat', 'dog', 'owl'], 40)
  z_ND = rng.standard_normal((120, 6)).astype(np.float32)
  z_ND[:, 0] += 6 * (label_N == 'cat')
  z_ND[:, 1] += 6 * (label_N == 'dog')
  group_N = np.arange(120) // 4
  np.savez(tmp_path / 'z.npz', z=z_ND, who=group_N)
  (tmp_path / 'y.txt').write_text('\n'.join(label_N) + '\n')
  groups = 'who' if grouped else ''
  one = labelled.score(tmp_path / 'z.npz', str(tmp_path / 'y.txt'), 'z', groups,
                       {'protocol': 'knn'})
  assert one['result']['score'] > .85 and one['result']['clips'] == 120
  assert one['result']['units'] == (30 if grouped else 120)
  task, z = labelled.folded(tmp_path, z_ND, label_N,
                            group_N if grouped else None)
  assert sum(map(len, z.values())) == 120
  if grouped:
    several = [set(g) for g in task.groups.values()]
    assert sum(map(len, several)) == len(set.union(*several)) == 30
  (tmp_path / 'y.txt').write_text('\n'.join(label_N[:-1]) + '\n')
  with pytest.raises(ValueError, match=r'\(119,\) labels for 120 embeddings'):
    labelled.score(tmp_path / 'z.npz', str(tmp_path / 'y.txt'), 'z')
  with pytest.raises(FileNotFoundError, match='no such file'):
    labelled.score(tmp_path / 'z.npz', str(tmp_path / 'no.csv'), 'z')
  with pytest.raises(ValueError, match='1 label, expected at least 2'):
    labelled.folded(tmp_path, z_ND, ['one'] * 120)


def test_embeddings_with_labels_are_a_point(tmp_path, capsys):
  rng = np.random.default_rng(0)
  label_N = np.repeat(['cat', 'dog'], 40)
  z_ND = rng.standard_normal((80, 6)).astype(np.float32)
  z_ND[:, 0] += 6 * (label_N == 'cat')
  np.savez(tmp_path / 'z.npz', z=z_ND)
  (tmp_path / 'y.txt').write_text('\n'.join(label_N) + '\n')
  with processes.flags_of(launched, embeddings=str(tmp_path / 'z.npz'),
                          labels=str(tmp_path / 'y.txt'), protocol='knn'):
    content = {'versions': {}, **launched.embeddings_record()}
  (point,) = board.points([write(tmp_path / 'a.json', content)])
  assert point.score > .8 and point.low < point.rank < point.high
  assert point.clips == 80 and point.protocol == 'knn'
  text = capsys.readouterr().out
  assert f'[{point.low:.3f}, {point.high:.3f}]' in text and 'chance' in text


def test_the_report_has_layers_and_points(tmp_path):
  rng = np.random.default_rng(0)
  x = np.geomspace(8, 100, 16)
  score = .9 - 1.2 * x ** -.6 + .004 * rng.normal(size=16)
  trained = pd.DataFrame({
      'run_id': [f'r{i}' for i in range(16)], 'name': 'run', 'width': 32,
      'size': 'en32-1', 'depth': 1,
      'configuration': range(16), 'rank': x, 'score': score, 'gain': .1,
      'gain_low': .05, 'untrained': False, 'rank_layer_0': x * .8,
      'rank_token_layer_0': x, 'best_layer_score': score + .02,
      'score_layer_0': score + .02})
  several = law.of_layers(trained)
  assert several[2] == pytest.approx(.02)
  assert several[1].params['Q_inf'] > several[0].params['Q_inf']
  words = wording.layer_words(several)
  assert words[0] == ('The best layer scores +0.020 above the final one, in '
                      'the mean.')
  assert words[2].startswith("Law of the best layer's score: limit 0.9")
  assert law.of_layers(trained.drop(columns='best_layer_score')) is None
  result = types.SimpleNamespace(
      claims=(), fit=several[0], study=types.SimpleNamespace(
          trained=trained, tasks=pd.DataFrame()))
  page = importlib.import_module('audiorank.report.page')
  text = ''.join(page.layers(result, types.SimpleNamespace(runs=trained)))
  assert 'RankMe, block 0' in text and 'score, best layer' in text
  (tmp_path / 'p.csv').write_text('name,rank,score\n<mine>,30,.95\n')
  own = board.points([tmp_path / 'p.csv'])
  assert 'no, above' in page.foreign(result, own)[0]
  ax = figures.rank_score(trained, several[0],
                          others=[(p.rank, p.score, p.name) for p in own])
  assert '<mine>' in [text.get_text() for text in ax.texts]


@pytest.mark.slow
def test_a_sweep_measured_and_scored_at_every_layer(corpus, tasks, tmp_path):
  changes = {'monitor.layers': ('all',), 'monitor.neighbour_clips': 40,
             'monitor.knn_task': 'texture-v1-full', 'monitor.lidar_clips': 20,
             'eval.every_layer': True,
             'eval.protocol': 'knn',
             'eval.tasks': str(tasks)}
  for steps in (0, 6):
    c = records.frozen(tiny.config(corpus, **changes, **{'train.steps': steps}))
    workdir = tmp_path / 'sweep' / records.run_id(c)
    records.open_run(workdir, c)
    train.run(workdir, c)
    assert evaluate.run(workdir, c)
    # A second time nothing is left to score.
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*.json')}
    assert evaluate.run(workdir, c)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*.json')}
  (tmp_path / 'p.csv').write_text('name,rank,score\nmine,3,.5\n')
  text = report.write(tmp_path / 'sweep', [tmp_path / 'p.csv']).read_text()
  for words in ('Layer by layer', 'score, best layer', 'RankMe, block 0',
                'Encoders of others', 'no law is fitted'):
    assert words in text
  runs = records.load(tmp_path / 'sweep').runs
  assert {'best_layer_score', 'rank_token', 'rank_token_layer_0',
          'neighbour_twonn', 'knn', 'lidar'} <= set(runs)
  assert runs[['best_layer_score', 'neighbour_twonn', 'knn',
               'lidar']].notna().all(
      axis=None)
  # While training by the same predictor as at the end.
  last = records.load(tmp_path / 'sweep').tasks
  scores = last[last['task'].str.startswith('texture')].set_index('run_id')
  np.testing.assert_allclose(runs.set_index('run_id')['knn'],
                             scores['score'][runs['run_id']], atol=1e-6)
