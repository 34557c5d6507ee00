"""The panel of runs, and the page of a sweep that is in progress."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from audiorank import baselines
from audiorank import laws
from audiorank import records
from audiorank.records import sweep as sweep_lib
from audiorank.report import explore
from configs import base
from tests import report_test

RUNS = 9


def tree_of(page):
  """Returns the JSON of a page's panel."""
  text = re.search('id="runs-data">(.*?)</script>', page, re.S)[1]
  return json.loads(text)


def add_score(folder, step, score):
  records.write(folder, 'hear.task', step, {
      'task': 'task', 'metric': 'accuracy', 'embedding_type': 'scene',
      'task_sha256': 'x', 'settings': {},
      'result': {'score': score, 'protocol': 'hear'}})


def add_rank(folder, step, rank):
  value = {'value': rank, 'low': .9 * rank, 'high': 1.1 * rank,
           'value_inf': None, 'siblings': {}}
  records.write(folder, 'monitor', step, {
      'n': 100, 'rank': value, 'rank_center': value, 'valid_loss': 1 / rank})


@pytest.fixture
def sweep(tmp_path):
  """A sweep of RUNS runs and their untrained network, on a law."""
  names = []
  for number in range(RUNS + 1):
    c = base.get_config('en32-2')
    c.train.steps, c.opt.lr = 1000, 1e-4 * (number + 1)
    c.mask.ratio = .5 + .25 * (number % 2)
    if number == RUNS:
      c = baselines.untrained(c)
    folder = tmp_path / records.run_id(c)
    records.open_run(folder, c)
    rank = 4. * 1.3 ** number
    if not c.train.steps:
      add_rank(folder, 0, 30.)
      add_score(folder, 0, .1)
    else:
      for step in (0, 500, 1000):
        add_rank(folder, step, rank)
      add_score(folder, 1000, .7 - rank ** -.7)
    (folder / 'DONE').touch()
    names.append(folder.name)
  return tmp_path, names


def states_of(root):
  return {f.name: records.state(f) for f in records.run_folders(root)}


def test_only_runs_with_a_new_record_are_read_again(sweep, monkeypatch):
  root, names = sweep
  calls = []
  read = sweep_lib.read_run
  monkeypatch.setattr(sweep_lib, 'read_run',
                      lambda folder: calls.append(folder.name) or read(folder))
  (root / names[0] / 'DONE').unlink()
  page = explore.LivePage(root, 'title')
  page.page({**states_of(root), names[0]: 'started'}, 'words', .5, {})
  assert sorted(calls) == sorted(names)
  calls.clear()
  page.page({**states_of(root), names[0]: 'started'}, 'words', .5, {})
  assert not calls
  add_rank(root / names[0], 700, 11.)
  tree = tree_of(page.page({**states_of(root), names[0]: 'started'}, 'words',
                           .5, {}))
  assert calls == [names[0]]
  run, = [run for run in tree['runs'] if run['id'] == names[0]]
  assert [700, 11., 1 / 11] in [pytest.approx(row, rel=1e-5)
                                for row in run['curve']]


def test_law_and_band_are_those_of_the_runs_so_far(sweep):
  root, names = sweep
  few = dict.fromkeys(names[:3], 'done')
  page = explore.LivePage(root, 'title')
  assert tree_of(page.page(few, '', 0., {}))['law'] is None
  law = tree_of(page.page(states_of(root), '', 0., {}))['law']
  rank = 4. * 1.3 ** np.arange(RUNS)
  score = .7 - rank ** -.7
  # The run below its untrained network is not part of a law.
  fit = laws.fit('saturating', {'rank': rank[score > .1],
                                'score': score[score > .1]})
  assert law['y'] == pytest.approx(fit.predict({'rank': law['x']}), abs=1e-5)
  assert all(low <= y + 1e-6 and y <= high + 1e-6 for low, y, high in
             zip(law['low'], law['y'], law['high']))


def test_scores_and_ranks_are_those_of_the_final_tables(sweep):
  root, _ = sweep
  live = tree_of(explore.LivePage(root, '').page(states_of(root), '', 0., {}))
  final = tree_of(explore.of_tables(records.tables(root)))
  for ours, theirs in zip(live['runs'], final['runs'], strict=True):
    assert ours == theirs
  assert live['filters'] == final['filters'] and live['law'] == final['law']
  assert not live['done'] and final['done'] and final['written'] is None


def test_a_page_says_progress_and_failures_and_reloads_until_the_end(sweep):
  root, names = sweep
  page = explore.LivePage(root, 'a <title>')
  assert page.show({**states_of(root), names[1]: 'failed'},
                   '1/10 runs done, 0:12 left', .4, {names[1]: 'loss <nan>'})
  text = page.target.read_text()
  assert '1/10 runs done, 0:12 left' in text and 'value="0.4000"' in text
  assert f'{names[1]}: loss &lt;nan&gt;' in text and 'a &lt;title&gt;' in text
  # Not again at once: writing must not take the cores of the workers.
  assert not page.show(states_of(root), '', 1., {})
  # A sweep that has no record yet has a page too.
  assert 'No run has a record yet' in explore.LivePage(root, '').page(
      dict.fromkeys(names, 'new'), '', 0., {})


def test_a_damaged_run_and_a_full_disk_do_not_stop_a_sweep(sweep, monkeypatch):
  root, names = sweep
  (root / names[2] / 'config.json').write_text('{')
  page = explore.LivePage(root, '')
  tree = tree_of(page.page(states_of(root), '', 0., {}))
  assert len(tree['runs']) == RUNS

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(explore.files, 'write_text', full)
  assert page.show(states_of(root), '', 0., {})


def test_fields_that_divide_the_runs_alike_are_one_filter():
  runs = [{'fields': {'a': i % 2, 'b': 1 - i % 2, 'same': 3, 'many': i,
                      'c': str(i // 2)}} for i in range(20)]
  several = {one['name']: one['values'] for one in explore.filters(runs)}
  assert several == {'a': [0, 1], 'many': None,
                     'c': sorted(map(str, range(10)))}


def test_tables_without_configs_and_names_with_tags_are_shown():
  sweep = report_test.sweep(n=8)
  sweep.runs.loc[0, 'name'] = '</script><b>'
  page = explore.of_tables(sweep)
  assert page.count('</script>') == 2
  tree = tree_of(page)
  assert tree['runs'][0]['name'] == '</script><b>'
  assert {'size', 'mask_ratio'} <= {one['name'] for one in tree['filters']}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('chromium'), reason='no browser')
def test_a_browser_filters_and_compares(sweep, tmp_path):
  root, names = sweep
  page = explore.LivePage(root, 'title')
  page.show(states_of(root), 'words', .5, {})
  view = f'#view?mask.ratio%3D=0.5&a={names[0]}&b={names[2]}'
  done = subprocess.run(
      ['chromium', '--headless', '--no-sandbox', '--disable-gpu',
       '--virtual-time-budget=2000', '--dump-dom',
       f'file://{page.target}{view}'], capture_output=True, text=True,
      timeout=100, check=True)
  # Runs 0, 2, 4, 6 and 8 have this masking rate; each has a row and a dot.
  assert f'5 of {RUNS + 1} runs' in done.stdout
  assert done.stdout.count('class="dot"') == 5
  pair = re.search('<table id="pair">(.*?)</table>', done.stdout, re.S)[1]
  row = re.findall('<td>([^<]*)</td>', pair)
  at = row.index('RankMe')
  assert row[at:at + 4] == ['RankMe', '4', '6.76', '2.76']
  assert '<td>mask.ratio' not in pair and '<td>opt.lr' in pair
