"""The report: every section from made-up sweeps, and anybody's bad table."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

from matplotlib import image
import numpy as np
import pandas as pd
import pytest

from audiorank import analysis
from audiorank import laws
from audiorank import records
from audiorank import report
from audiorank.analysis import early
from audiorank.analysis import study
from audiorank.analysis import training
from audiorank.rankme import record
from audiorank.report import curves
from audiorank.report import tables
from audiorank.report import wording
from launch import report as launch_report
from tests import processes

STEPS = 1000


def sweep(n=30, seed=0, follow=1., sizes=3, odd=None):
  """Tables of a made-up sweep.

  Args:
    n: trained runs.
    seed: of the noise.
    follow: how well RankMe early tells the final one; 0 for not at all.
    sizes: how many widths.
    odd: number of a run that lies far below the law.
  """
  rng = np.random.default_rng(seed)
  rank = np.geomspace(8, 200, n)
  score = .85 - 1.2 * rank ** -.6 + .004 * rng.normal(size=n)
  if odd is not None:
    score[odd] -= .08
  rows = []
  for i in range(n + sizes):
    off, k = i >= n, i % sizes
    rows.append({
        'run_id': f'r{i}', 'experiment': 'made', 'state': 'done',
        'untrained': off, 'size': f'en{32 * 2 ** k}-2', 'width': 32 * 2 ** k,
        'depth': 2, 'heads': 2, 'mask_ratio': .5 + .25 * (i % 2), 'lr': 1e-3,
        'batch': 8, 'steps': 0 if off else STEPS, 'seed': 0,
        'crop_seconds': 1., 'objective': 'mae', 'params': 10_000 * 4 ** k,
        'hours': 1. + i, 'flops': 0 if off else 10 ** 9 * (i + 1),
        'flops_encoder': 0, 'rank': 20. if off else rank[i],
        'rank_low': 8., 'rank_high': 210., 'rank_center': 5. + i,
        'rank_center_low': 4., 'rank_center_high': 50., 'valid_loss':
        1. if off else .9 - .01 * i, 'score': .05 if off else score[i],
        'scored_tasks': 2, 'final': True, 'step': 0 if off else STEPS,
        'baseline': f'r{n + k}', 'name': f'run {i}', 'alarms': '[]'})
  runs = pd.DataFrame(rows)
  history = []
  for _, r in runs.iterrows():
    noise = rng.normal(size=3)
    for j, step in enumerate([0] if r['untrained'] else
                             [0, 100, 250, 500, STEPS]):
      value = r['rank']
      if 0 < step < STEPS:
        value = np.exp(follow * np.log(value) + (1 - follow) * (
            3 + noise[j - 1]))
      history.append({**r, 'step': step, 'rank': value if step else 25.,
                      'valid_loss': 1.2 - .1 * j + .001 * rng.normal()})
  tasks = pd.DataFrame([
      {**r, 'task': task, 'metric': 'accuracy', 'score': r['score'] + d,
       'protocol': 'logistic', 'embedding_type': 'scene'}
      for _, r in runs.iterrows() for task, d in (('a', -.01), ('b', .01))])
  return records.Tables(runs, pd.DataFrame(history), tasks)


@pytest.fixture(scope='module')
def whole():
  return analysis.analyze(sweep())


def test_early_rank_that_tells_is_measured(whole):
  soon = whole.early
  assert [round(share, 2) for share, _ in soon.rungs] == [.1, .25, .5]
  rows = soon.agreement.set_index('early')
  assert rows.loc['RankMe at 50 %', 'tau'] > .98
  # Holm: no adjusted p below its own, none of what is not RankMe.
  own = soon.agreement['holm'].notna()
  assert (soon.agreement['holm'][own] >= soon.agreement['p'][own]
          - 1e-12).all()
  assert np.isnan(rows.loc['masking rate', 'holm'])
  stopped = soon.halving.set_index('chooser').loc['RankMe']
  assert stopped['regret'] < .02 and .3 < stopped['saved'] < .9
  assert 'saves' in ' '.join(wording.early_words(whole))
  # Hours order these runs as well: RankMe beats all but them.
  claim, = (one for one in whole.claims if one.key == 'early')
  decided = {rival.name: rival.decided for rival in claim.rivals}
  assert decided['hours of audio'] <= 0 < decided['width']
  assert claim.verdict == analysis.INCONCLUSIVE


def test_early_rank_that_does_not_tell_is_no_better_than_luck():
  rows = study.read(sweep(follow=0.))
  soon = early.predict(rows)
  table = soon.agreement.set_index('early')
  name = soon.rungs[-1][1]
  assert table.loc[name, 'tau_low'] < 0 < table.loc[name, 'tau_high']
  # Hours order these runs perfectly, and it is said.
  claim = early.of_early(rows, soon)
  assert claim.verdict == analysis.FAILS
  assert 'better than RankMe: hours of audio' in wording.compared(claim)


def test_scored_checkpoints_are_an_early_probe():
  tables = sweep()
  more = tables.tasks[~tables.tasks['untrained']].assign(step=250)
  soon = early.predict(study.read(tables._replace(
      tasks=pd.concat([tables.tasks, more]))))
  assert 'score at 25 %' in set(soon.agreement['early'])
  # A checkpoint scored on fewer tasks than its run is another mean.
  part = more[more['task'] == 'a']
  soon = early.predict(study.read(tables._replace(
      tasks=pd.concat([tables.tasks, part]))))
  assert 'score at 25 %' not in set(soon.agreement['early'])


def test_outlier_is_named():
  it = analysis.analyze(sweep(odd=11))
  assert it.diagnostics.outliers['label'].tolist() == ['run 11']
  assert 'run 11' in wording.trouble_words(it)[0]


def test_unstable_runs_and_alarms_are_listed():
  tables = sweep()
  history = tables.history.copy()
  mine = history['run_id'] == 'r20'
  history.loc[mine & (history['step'] == STEPS), 'rank'] = 2.
  two = json.dumps([
      {'kind': 'small_sample', 'value': 9, 'threshold': 128, 'step': 500},
      {'kind': 'collapse', 'value': 1.2, 'threshold': 1.5, 'step': 500}])
  history.loc[mine & (history['step'] >= 500), 'alarms'] = two
  events = training.events(study.read(tables._replace(history=history)))
  by_curve = events[events['source'] == 'curve']
  assert by_curve[['name', 'kind']].values.tolist() == [
      ['run 20', 'collapse']]
  words = ' '.join(wording.event_words(events))
  assert 'RankMe collapsed: run 20 at step 1000' in words
  by_monitor = events[events['source'] == 'monitor']
  assert by_monitor['kind'].tolist() == ['small_sample', 'collapse']
  assert by_monitor['times'].tolist() == [2, 2]
  assert by_monitor['threshold'].tolist() == [128, 1.5]


def test_forms_of_law_and_checklist(whole):
  assert set(whole.forms['law']) == {
      'saturating', 'log_linear', 'exponential', 'sigmoid', 'logit_linear'}
  assert whole.forms['law'][0] == 'saturating'
  table = laws.checklist.fill(whole.fit, wording.checklist(whole))
  items = dict(zip(table['item'], table['answer']))
  assert items['checkpoints used'] == 'the last of each run'
  assert 'the same for every size' in items['hyperparameters per size']
  assert 'not stated' not in items.values()


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return report.page(tmp_path_factory.mktemp('none'), sweep(odd=11),
                     'A <title>')


def test_page_has_every_section(text):
  for title in ('What a doubling of RankMe is worth', 'All claims',
                'Can RankMe choose a run early?',
                'Where the law fails, and unstable runs',
                'How the law was fitted'):
    assert f'>{title}</h2>' in text
  body = text.split('<body>')[1]
  assert 'A &lt;title&gt;' in text
  assert not re.search(r'\bnan\b', re.sub(r'<svg.*?</svg>', '', body,
                                          flags=re.S))
  assert 'Not drawn' not in text and 'Exploratory' not in text
  # Four sentences, then the slopes, then the claims.
  lead = body.split('<div class="lead">')[1].split('</div>')[0]
  assert lead.count('<p>') == 4
  assert body.index('class="lead"') < body.index('<svg') < body.index(
      'table class="text claims"')


def test_page_shows_the_claims_of_the_analysis(text):
  table = wording.frame(analysis.analyze(sweep(odd=11)).claims)
  inside = text.split('<table class="text claims">')[1].split('</table>')[0]
  assert inside.count('<tr') == len(table) + 1
  for verdict in table['verdict']:
    assert f'>{verdict}</td>' in inside


def test_figures_follow_the_page(text):
  """Ink, ground and greys are the page's; letters stay letters."""
  drawn = re.findall(r'<figure class="drawn">(.*?)</figure>', text, re.S)
  assert len(drawn) >= 8
  for figure in drawn:
    assert 'currentColor' in figure and '<text' in figure
    assert '#000000' not in figure and '#ffffff' not in figure
    # In units of the drawing, which a phone shows one to one: 9 px at least.
    wide = float(re.search(r'viewBox="0 0 ([\d.]+)', figure)[1])
    sizes = [float(v) for v in re.findall(r'font(?:-size)?: ?([\d.]+)px',
                                          figure)]
    assert sizes and min(sizes) * 365 / wide >= 8.95, (min(sizes), wide)
  names = re.findall(r'\bid="(f[^"]*)"', ''.join(drawn))
  assert len(names) == len(set(names))


def test_every_run_has_its_curves_one_click_away(text):
  links = re.findall(r'href="#(run-r\d+)"', text)
  assert sorted(links) == sorted(f'run-r{i}' for i in range(33))
  for link in links:
    inside = text.split(f'<details id="{link}">')[1].split('</details>')[0]
    # Untrained networks have one reading, and so no curve.
    number = int(link.removeprefix('run-r'))
    assert inside.count('<svg') == (2 if number < 30 else 0)


def test_a_chart_puts_its_points_where_they_are():
  drawn = curves.chart('t <', [([0, 10, 1000], [1., 2., 3.], ''),
                               ([1, 2], [np.nan, 1.], 'faint')], log_x=True)
  assert 't &lt;' in drawn and drawn.count('<polyline') == 1
  at = [tuple(map(float, p.split(','))) for p in
        re.search(r'points="([^"]*)"', drawn)[1].split()]
  x, y = zip(*at)
  # Step 0 stands at half the first step; equal steps of y, downwards.
  assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(
      np.log(2) / np.log(200), abs=.01)
  assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=.2) and y[0] > y[2]
  assert '>0</text>' in drawn and '>1000</text>' in drawn
  assert curves.chart('t', [([1], [1.], '')]) == ''


def test_spectrum_of_a_record_is_drawn(tmp_path):
  s_K = np.arange(1, 101)[::-1].astype(float)
  for step in (0, 10):
    records.write(tmp_path / 'r', 'monitor', step, {
        'rank': {'spectrum': record.shares(s_K)}})
  read = record.shares(s_K)
  assert read[0] == [1, 100 / 5050] and read[-1] == [100, 1 / 5050]
  assert len(read) <= 64
  assert curves.spectrum(tmp_path, 'r').count('<polyline') == 2
  assert curves.spectrum(tmp_path, 'none') == ''


def chromium(path, *flags):
  """Runs a headless browser on a page; returns what it prints."""
  found = shutil.which('chromium') or shutil.which('google-chrome')
  if found is None:
    pytest.skip('no chromium')
  return subprocess.run(
      [found, '--headless', '--no-sandbox', '--disable-gpu', *flags,
       f'--user-data-dir={path.parent}/profile', '--virtual-time-budget=3000',
       path.as_uri()], capture_output=True, text=True, timeout=400).stdout


def pixels(path):
  return image.imread(path)[..., :3]


# The page in a frame as wide as a phone; what is found becomes the title.
BROWSER = """<!doctype html><title></title><body>
<iframe id="f" style="width:390px;height:900px;border:0"></iframe><script>
f.onload = () => {
  const page = f.contentDocument, wide = page.documentElement.scrollWidth;
  const table = page.querySelector('table.sorted');
  const column = () => [...table.tBodies[0].rows].map(
      row => parseFloat(row.cells[8].textContent));
  const button = table.querySelectorAll('th button')[8];
  button.click(); const down = column();
  button.click(); const up = column();
  table.tBodies[0].rows[0].cells[0].querySelector('a').click();
  const open = [...page.querySelectorAll('details')].filter(d => d.open);
  document.title = JSON.stringify([wide, down, up, open.length]);
};
f.srcdoc = WHOLE;
</script>"""


def test_page_in_a_browser(text, tmp_path):
  """A phone's width holds it, a click sorts, a link opens, dark is dark."""
  page = tmp_path / 'page.html'
  whole = json.dumps(text).replace('</', '<\\/')
  page.write_text(BROWSER.replace('WHOLE', whole))
  found = re.search('<title>(.*?)</title>', chromium(page, '--dump-dom'))
  wide, down, up, opened = json.loads(found[1])
  assert wide <= 390 and opened == 1
  assert down == sorted(down, reverse=True) and up == sorted(up)
  assert len(down) == 33
  page.write_text(text)
  shown = {}
  for name, flag in (('light', 1), ('dark', 0)):
    chromium(page, f'--screenshot={tmp_path}/{name}.png',
             '--window-size=1000,700',
             f'--blink-settings=preferredColorScheme={flag}')
    shown[name] = pixels(tmp_path / f'{name}.png')
  # The page's own ground, and letters that stand off it.
  assert shown['light'][:, :5].mean() > .95 and shown['light'].min() < .3
  assert shown['dark'][:, :5].mean() < .15 and shown['dark'].max() > .7


@pytest.mark.parametrize('n', [0, 1, 4])
def test_page_of_few_runs(tmp_path, n):
  tables = sweep(max(n, 1))
  if not n:
    gone = lambda t: t[t['untrained']].reset_index(drop=True)
    tables = records.Tables(*(gone(t) for t in tables))
  text = report.page(tmp_path, tables, 'few')
  assert '<h2' in text and 'How it was measured' in text
  # No number that cannot be: no score, rank or step of these is above STEPS.
  body = re.sub(r'<(svg|script).*?</\1>|<[^>]+>', ' ', text.split('<body>')[1],
                flags=re.S)
  assert not re.search(r'\b(nan|inf)\b', body)
  assert max(map(float, re.findall(r'(?<![\w.])\d+\.?\d*(?!\w)', body))
             ) <= STEPS


def test_page_without_scores(tmp_path):
  tables = sweep(6)
  tables = records.Tables(
      tables.runs.assign(score=np.nan, scored_tasks=0),
      tables.history.drop(columns='valid_loss'), pd.DataFrame())
  text = report.page(tmp_path, tables, 'waiting')
  assert 'No trained run is scored yet' in text


def test_a_task_that_no_run_is_scored_on_has_no_mean():
  """As a task of events in a sweep whose scores are all missing."""
  sweep_ = sweep(6)
  silent = sweep_.tasks['task'] == 'a'
  gone = sweep_.tasks.assign(score=sweep_.tasks['score'].where(~silent))
  table = training.tasks(study.read(sweep_._replace(tasks=gone)))
  text = tables.tasks(table)
  rows = {line.split('</td>')[0].rpartition('>')[2]: line
          for line in text.split('<tr')[2:]}
  assert '–' in rows['a'] and 'nan' not in rows['a']
  assert '–' not in rows['b']


def test_endless_rank_is_told_of_enough_clips_alone():
  row = {'width': 64, 'rank_value_inf': 60.}
  assert tables.endless(row, 'rank', 512) == '60.0'
  assert tables.endless(row, 'rank', 511) == '–'
  assert tables.endless({**row, 'rank_value_inf': 64.1}, 'rank', 512) == '–'


def command(capsys, **values):
  """Runs launch.report with some flags; returns what it prints."""
  with processes.flags_of(launch_report, **values):
    launch_report.main(['report'])
  return capsys.readouterr().out


def test_one_table_and_one_sweep_give_the_same_claims(
    tmp_path, capsys, sample_analysis):
  """launch.report --table on a sweep's runs: its claims and its law."""
  it, made = sample_analysis, records.load(records.SAMPLE)
  for name, table in made._asdict().items():
    table.to_parquet(tmp_path / f'{name}.parquet')
  table = str(tmp_path / 'runs.parquet')
  printed = command(capsys, table=table)
  assert wording.plain(it.claims) in printed
  assert f'{it.fit.n} points' in printed
  printed = command(capsys, table=table, markdown=True,
                    slopes=str(tmp_path / 'slopes.png'))
  assert printed == wording.markdown(it.claims) + '\n'
  # As wide as a phone: 750 pixels of 5 inches, letters of 10 points.
  assert pixels(tmp_path / 'slopes.png').shape[1] == 750


def test_a_page_is_compared_with_the_claims(tmp_path, capsys, sample_analysis):
  page, table = tmp_path / 'page.md', wording.markdown(sample_analysis.claims)
  page.write_text(f'# A\n<!-- claims -->\n{table}\n<!-- /claims -->\nMore.\n')
  launch_report.check_page(sample_analysis, page)
  assert 'claims: all as in' in capsys.readouterr().out
  page.write_text(page.read_text().replace('| inconclusive |', '| holds |', 1))
  with pytest.raises(SystemExit, match='1'):
    launch_report.check_page(sample_analysis, page)
  shown = capsys.readouterr().out.splitlines()
  assert [line[0] for line in shown] == ['-', '+']
  assert '| holds |' in shown[0] and '| inconclusive |' in shown[1]
  page.write_text('no claims')
  with pytest.raises(ValueError, match='expected one table between'):
    launch_report.check_page(sample_analysis, page)
  page.write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match='not a text file'):
    launch_report.check_page(sample_analysis, page)


BAD = """
import contextlib, io, json, sys
from absl import flags
from launch import cli, report
out = []
for case in json.loads(sys.argv[1]):
  err = io.StringIO()
  flags.FLAGS.unparse_flags()
  sys.argv = ['report', '--law=saturating', '--x=r', '--y=q', '--loss=ls',
              '--groups=', '--nomarkdown', *case]
  with contextlib.redirect_stderr(err), contextlib.redirect_stdout(
      io.StringIO()):
    try:
      cli.run(report.main)
      code = 0
    except SystemExit as stop:
      code = stop.code
  out.append([code, err.getvalue()])
print(json.dumps(out))
"""


def test_bad_tables_are_one_line(tmp_path):
  rank = np.geomspace(5, 500, 12)
  good = pd.DataFrame({
      'r': rank, 'q': .9 - 1.2 * rank ** -.8, 'flat': 3.,
      'zero': np.append(0., rank[1:]), 'hole': np.append(np.nan, rank[1:]),
      'text': ['many'] * 12})
  path, few = tmp_path / 't.csv', tmp_path / 'few.csv'
  good.to_csv(path, index=False)
  good.iloc[:3].to_csv(few, index=False)
  (tmp_path / 'empty.csv').write_text('')
  (tmp_path / 'head.csv').write_text('r,q\n')
  (tmp_path / 'bytes.csv').write_bytes(b'\x89PNG\r\n\x1a\n\x00')
  (tmp_path / 'not.parquet').write_text('r,q\n1,2\n')
  table = f'--table={path}'
  cases = {
      'at least 4 different points, found 3': [f'--table={few}'],
      "column 'flat' is constant (3)": [table, '--x=flat'],
      "'zero' is 0 in row 0: a law takes its logarithm": [table, '--x=zero'],
      "column 'hole' is nan in row 0": [table, '--x=hole'],
      "column 'text' is not numeric: 'many' in row 0": [table, '--x=text'],
      "no column 'rank': the table has r, q": [table, '--x=rank'],
      "no law named 'chinchilla'": [table, '--law=chinchilla'],
      'separable takes 2 input column(s)': [table, '--law=separable'],
      "column 'r' is used twice": [table, '--y=r'],
      "no loss named 'l2'": [table, '--loss=l2'],
      "no column 'family'": [table, '--groups=family'],
      'empty.csv: not a table': [f'--table={tmp_path}/empty.csv'],
      "column 'r' is empty": [f'--table={tmp_path}/head.csv'],
      'bytes.csv: not a table': [f'--table={tmp_path}/bytes.csv'],
      'not.parquet: not a table': [f'--table={tmp_path}/not.parquet'],
      'none.csv: no such file': [f'--table={tmp_path}/none.csv'],
      'expected one of --workdir, --table': [table, f'--workdir={tmp_path}'],
      't.csv: no sweep\'s table': [table, '--markdown'],
      '--out=FILE: expected a file': [f'--root={tmp_path}/a',
                                      f'--root={tmp_path}/b'],
  }
  done = subprocess.run(
      [sys.executable, '-c', BAD, json.dumps(list(cases.values()))],
      capture_output=True, text=True,
      cwd=pathlib.Path(__file__).resolve().parents[1])
  assert done.returncode == 0, done.stderr
  for (words, case), (code, said) in zip(cases.items(),
                                         json.loads(done.stdout)):
    assert code == 1, (case, said)
    assert words in said and said.count('\n') == 1, (case, said)


def test_a_table_of_sizes_and_data_is_answered(tmp_path, capsys):
  """Headers with blanks, a frontier and a bound, from the command line."""
  n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e10, 5),
                                         np.geomspace(1e9, 1e12, 5)))
  loss = 1.8 + 480 * n ** -.35 + 2100 * d ** -.37
  path = tmp_path / 't.csv'
  path.write_text('N , D, loss\n' + '\n'.join(
      f'{a!r}, {b!r}, {c!r}' for a, b, c in zip(
          n.tolist(), d.tolist(), loss.tolist())))
  printed = command(
      capsys, table=str(path), law='separable', loss='log_ls',
      compare=['smooth_min'], budgets=['1e20', '1e21', '1e22'], amount=1e10)
  # G (C / 6)^(beta / (alpha + beta)), Hoffmann et al., appendix A.
  G = (.35 * 480 / (.37 * 2100)) ** (1 / .72)
  row = next(line.split() for line in printed.splitlines()
             if line.split()[:1] == ['1e+21'])
  np.testing.assert_allclose(float(row[1]), G * (1e21 / 6) ** (.37 / .72),
                             rtol=2e-3)
  assert 'N grow as C^0.514' in printed
  assert '1e+10 D feed a N of' in printed
  lines = printed.splitlines()
  at = next(i for i, line in enumerate(lines) if 'left out, the best' in line)
  assert lines[at + 2].split()[0] == 'separable'
