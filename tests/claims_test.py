"""The verdicts: what they find of known effects, what they refuse to say."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from audiorank import records
from audiorank.findings import claims
from audiorank.findings import described
from audiorank.findings import score
from audiorank.findings import within

ROOT = pathlib.Path(__file__).resolve().parents[1]
STUDY = ROOT / 'notebooks' / 'results' / 'small_study'


def study(effect, noise=.01, seed=0, rates=(.3, .5, .65, .75, .9), repeats=6):
  """Trained runs: one configuration repeated, and others by masking rate.

  RankMe doubles over the rates whatever the effect; the score rises by
  `effect` a doubling.
  """
  rng = np.random.default_rng(seed)
  points = [(.75, s) for s in range(repeats)] + [(r, 0) for r in rates
                                                 if r != .75]
  log2_rank = np.interp([r for r, _ in points], [.3, .9], [3., 4.])
  return pd.DataFrame({
      'run_id': [f'{i:012}' for i in range(len(points))],
      'size': 'en32-4', 'width': 32, 'heads': 1, 'params': 60_928,
      'mask_ratio': [r for r, _ in points], 'seed': [s for _, s in points],
      'rank': 2 ** log2_rank, 'valid_loss': rng.uniform(.4, .5, len(points)),
      'score': .5 + effect * log2_rank + rng.normal(0, noise, len(points))})


def test_slope_covers_the_truth_as_often_as_it_says():
  """Over 400 studies; the noise is known by 5 degrees of freedom alone."""
  hit, signs = 0, []
  for seed in range(400):
    trained = study(.05, seed=seed)
    found = within.slope(within.groups(trained, ('mask_ratio',)),
                         within.noise(trained))
    hit += found.low <= .05 <= found.high
    signs.append(within.sign(found.low, found.high))
  # The larger of two estimates of one variance is taken: a little wide.
  # Binomial 3 sd at 400: .033.
  assert .95 - .033 <= hit / 400 <= .995
  assert claims.FAILS not in signs and signs.count(claims.HOLDS) > 200


@pytest.mark.parametrize('effect, verdict', [
    (.2, claims.HOLDS), (-.2, claims.FAILS), (0., claims.OPEN)])
def test_verdicts_follow_the_effect(effect, verdict):
  rows = within.families(study(effect)).set_index('family')
  assert rows.loc['masking rate', 'verdict'] == verdict
  assert rows.loc['masking rate', 'configurations'] == 5
  assert 'hours of audio' not in rows.index


def test_noise_is_of_seeds_and_not_of_repeats():
  trained = study(0., noise=.02, repeats=200)
  found = within.noise(trained)
  # 200 runs: 3 sd of the estimate are 15 %.
  assert found.score == pytest.approx(.02, rel=.15)
  assert found.free == 199 and found.log2_rank == pytest.approx(0, abs=1e-9)
  # The same run read at other steps is no second run.
  twice = pd.concat([trained, trained], ignore_index=True)
  assert within.noise(twice) == found
  alone = within.noise(trained[:1])
  assert alone.free == 0 and np.isnan(alone.score)


def test_groups_differ_in_one_thing_alone():
  trained = study(0.)
  other = trained.assign(size='en64-4', width=64)[trained['seed'] == 0]
  both = pd.concat([trained, other], ignore_index=True)
  found = within.groups(both, ('mask_ratio',))
  assert found['group'].nunique() == 2
  for _, rows in found.groupby('group'):
    assert rows['size'].nunique() == 1 and len(rows) == 5
  by_size = within.groups(both, ('size',))
  assert all(rows['mask_ratio'].nunique() == 1
             for _, rows in by_size.groupby('group'))
  # Repeats are one configuration of so many runs.
  assert found['runs'].max() == 6


def test_without_repeats_the_residual_is_the_noise():
  trained = study(.2, repeats=1)
  found = within.slope(within.groups(trained, ('mask_ratio',)),
                       within.noise(trained))
  assert found.low < .2 < found.high
  # Two points and no noise known: nothing can be said.
  two = trained[trained['mask_ratio'].isin([.3, .9])]
  assert within.slope(within.groups(two, ('mask_ratio',)),
                      within.noise(two)) is None


def test_points_of_the_line_are_told_off_it_as_seldom_as_said():
  """Far from the line's middle, where its own slope errs most."""
  rng, hit = np.random.default_rng(0), 0
  x_N, x_M = np.linspace(3, 4, 12), np.array([4.9, 5.1])
  for _ in range(1000):
    y_N, y_M = (.1 * x + rng.normal(0, .02, len(x)) for x in (x_N, x_M))
    away, reach = within.off_line(x_N, y_N, x_M, y_M)
    hit += abs(away) <= reach
  # The interval is exact for normal noise; binomial 3 sd at 1,000: .021.
  assert hit / 1000 == pytest.approx(.95, abs=.021)


def test_every_claim_is_judged_on_a_real_sweep():
  made = records.load(records.SAMPLE)
  found = claims.table(made)
  assert set(found['verdict']) <= {claims.HOLDS, claims.FAILS, claims.OPEN}
  open_ = found[found['verdict'] == claims.OPEN]
  assert (open_['would_tell'] != '').all()
  assert found['claim'].is_unique
  lines = claims.markdown(found).splitlines()
  assert len(lines) == len(found) + 2
  assert len({line.count('|') for line in lines}) == 1
  with pytest.raises(ValueError, match='nothing to judge'):
    claims.table(made._replace(runs=made.runs[made.runs['untrained']]))
  by_task = described.tasks(made)
  assert set(by_task.index) == set(made.tasks['task'])
  assert by_task['gain'].to_numpy(float) == pytest.approx(
      (by_task['trained'] - by_task['untrained']).to_numpy(float), abs=.05)


def test_the_readme_says_what_the_records_say():
  made = records.load(STUDY)
  table = claims.markdown(claims.table(made))
  assert table in (ROOT / 'README.md').read_text()
  trained = made.runs[~made.runs['untrained']]
  _told_in_words(made, ' '.join((ROOT / 'README.md').read_text().split()))
  assert len(trained) >= 60 and trained['experiment'].nunique() >= 6
  assert trained['score'].notna().all()


def _told_in_words(made, text):
  """Asserts what README's list under the table says."""
  every, _ = score.with_gain(made.runs)
  is_mae = every['objective'].str.startswith('mae')
  short = lambda value: f'{value:.3f}'.replace('0.', '.', 1)
  loo = score.predictors(every[is_mae]).set_index('predictor')['loo']
  assert (f'(error {short(loo["width"])} against {short(loo[score.SUBJECT])})'
          in text)
  found = claims.table(made).set_index('claim')
  early = found['measured'].filter(like='early').item()
  assert 'within a size +0.01' in early and '(tau +.01)' in text
  latent = found['measured'].filter(like='latent').item()
  assert latent.startswith('+.055') and 'scores .055 above' in text
  by_task = described.tasks(made)
  by_task.index = [i.split('-')[0] for i in by_task.index]
  rise = (by_task['trained'] - by_task['untrained']).astype(float)
  assert rise[['scene', 'texture', 'temporal_rhythm']].between(.065, .085).all()
  assert 'by about .07' in text
  assert rise['mini_pitch'] == pytest.approx(-.145, abs=.005)
  assert by_task.loc['mini_pitch', 'beat'] == 0
