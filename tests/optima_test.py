"""The best learning rate by size, from a table of runs to sentences."""

import json

import numpy as np
import pandas as pd
import pytest

from audiorank import records
from audiorank.analysis import optima
from audiorank.report import wording
from audiorank.report.page import best_rates
from launch import report as launch_report
from tests import processes

RATES = 2.5e-4 * 2. ** np.arange(7)


def table(exponents, widths=(16, 32, 64, 128), noise=.002, seeds=4):
  """Returns unscored runs: the best rate follows a power of the width.

  Args:
    exponents: {opt.transfer: exponent}.
    widths: of the encoders.
    noise: standard deviation between runs; seeds differ by ten times as much.
    seeds: how many.
  """
  rng, rows = np.random.default_rng(0), []
  for transfer, exponent in exponents.items():
    for width in widths:
      offsets = rng.normal(0, 10 * noise, seeds)
      best = 2e-3 * (width / 16) ** exponent
      for lr in RATES:
        for seed in range(seeds):
          rows.append({
              'run_id': f'r{len(rows)}', 'untrained': False, 'state': 'trained',
              'final': True, 'size': f'en{width}-1', 'width': width, 'depth': 1,
              'heads': max(1, width // 32), 'params': 12 * width ** 2,
              'lr': lr, 'seed': seed, 'score': None, 'rank': 10.,
              'config': json.dumps({'opt': {'transfer': transfer}}),
              'valid_loss': .6 + .02 * np.log2(lr / best) ** 2 + offsets[seed]
                            + rng.normal(0, noise)})
  return pd.DataFrame(rows)


def test_optima_and_whether_sizes_share_one():
  known = optima.read(table({0: -.6, 32: 0.}), 'opt.lr')
  assert known.others == ('opt.transfer',) and len(known.table) == 8
  for _, row in known.table.iterrows():
    truth = 2e-3 * (row['width'] / 16) ** {'0': -.6, '32': 0.}[
        row['opt.transfer']]
    assert row['best'] == pytest.approx(truth, rel=.1)
    assert row['low'] < row['best'] < row['high']
  moves, stays = known.constant
  assert (moves.verdict, stays.verdict) == ('fails', 'holds')
  assert moves.low < 8 ** -.6 < moves.high < 1 / optima.SAME
  first, second = wording.optima_words(known)
  assert first.startswith('With opt.transfer 0, the best learning rate by')
  assert 'From en16-1 to en128-1 it changes 0.2' in first
  assert second.endswith('28 runs at 4 sizes.') or 'holds' in second


def test_noise_leaves_it_open_and_says_what_would_decide():
  one, = optima.read(table({0: -.1}, noise=.03, seeds=2)).constant
  assert one.verdict == 'inconclusive' and one.needed is not None


def test_an_optimum_beyond_the_tried_values_is_said_so():
  runs = table({0: 0.}, (16, 32), seeds=3)
  known = optima.read(runs[runs['lr'] < 1.5e-3])
  shown = wording.optima_table(known)
  assert list(shown['best learning rate']) == ['above 0.001'] * 2
  assert shown['remark'].str.contains('may lie above it').all()
  # A vertex outside of what was tried is no optimum that sizes could share.
  one, = known.constant
  assert one.verdict == 'inconclusive' and one.needed.kind == 'bounded'
  # The highest counts where it is a score.
  known = optima.read(runs.assign(score=-runs['valid_loss']), measure='score')
  assert known.table['best'].between(1.7e-3, 2.3e-3).all()


def test_runs_that_diverged_or_are_not_done_do_not_pull():
  runs = table({0: 0.}, (16, 32), seeds=3)
  fails = (runs['lr'] == RATES[-1]).to_numpy()
  runs = runs.assign(state=np.where(fails, 'failed', runs['state']),
                     final=~fails, valid_loss=runs['valid_loss'].mask(fails, 0))
  part = runs.iloc[:4].assign(run_id=list('abcd'), final=False, valid_loss=.01)
  known = optima.read(pd.concat([runs, part]))
  assert known.table['best'].between(1.7e-3, 2.3e-3).all()
  assert (known.table['last'] == RATES[-1]).all()


def test_the_command_and_the_page_show_them(tmp_path, capsys):
  runs = table({0: -.6, 32: 0.})
  path = tmp_path / 'runs.parquet'
  runs.to_parquet(path)
  with processes.flags_of(launch_report, table=str(path), optimum='opt.lr'):
    launch_report.main(['report'])
  printed = capsys.readouterr().out
  shown = wording.optima_table(optima.read(runs))
  for value in shown['best learning rate']:
    assert value in printed
  assert printed.count('within a factor of 1.5') == 2
  html = ''.join(best_rates(records.Tables(runs, runs, runs)))
  assert html.count('<tr') == 9 and 'within a factor of 1.5: holds' in html
  bare = runs[['lr', 'valid_loss']][runs['width'] == 16]
  assert len(optima.read(bare).table) == 1
  few = runs[runs['lr'] > 5e-3]
  assert best_rates(records.Tables(few, few, few)) == []


@pytest.mark.parametrize('field, change, words', [
    ('opt.b1', {}, 'opt.b1: no such column, or all runs have one value'),
    ('lr', {'lr': 0.}, 'lr: expected numbers above 0, found 0.0'),
    ('opt.transfer', {}, 'opt.transfer: expected numbers above 0, found')])
def test_bad_settings_are_one_line(field, change, words):
  runs = table({0: 0., 32: 0.}, (16,), seeds=2).assign(**change)
  with pytest.raises(ValueError, match=words):
    optima.read(runs, field)


@pytest.mark.parametrize('measure, words', [
    ('nothing', 'nothing: no such column: expected a measure'),
    ('size', 'size: expected numbers, found en16-1')])
def test_bad_measures_are_one_line(measure, words):
  with pytest.raises(ValueError, match=words):
    optima.read(table({0: 0.}, (16,), seeds=2), 'lr', measure)


def test_the_command_refuses_a_setting_with_one_value(tmp_path):
  runs = table({0: 0.}, (16,), seeds=2)
  path = tmp_path / 'runs.csv'
  for part in (runs[runs['lr'] == RATES[0]], runs.assign(untrained=True)):
    part.to_csv(path, index=False)
    with processes.flags_of(launch_report, table=str(path), optimum='lr'):
      with pytest.raises(ValueError, match='runs that differ in lr alone'):
        launch_report.main(['report'])
