"""Intervals of scores: what resampling equals, and how often they cover."""

import json
import math

import numpy as np
import pytest

from audiorank.hear import folds
from audiorank.hear import intervals
from audiorank.hear import predictions
from audiorank.hear import probe
from audiorank.hear import scores
from audiorank.hear import tasks

SCENE = ('top1_acc', 'chroma_acc', 'mAP', 'aucroc', 'd_prime')


def toy_task(clips, labels=4, measure='top1_acc', kfold=0, groups=None,
             kind='multiclass'):
  """A scene task without labels; `clips` of every split."""
  splits = ('train', 'valid', 'test')
  if kfold:
    splits = tuple(f'fold{i}' for i in range(kfold))
  return tasks.Task(
      name='toy', folder=None, metadata={}, embedding_type='scene',
      prediction_type=kind, splits=splits, rate=16000, sample_duration=1.,
      labels=tuple('abcdefgh'[:labels]), evaluation=(measure,), paths={},
      split_mode='new_split_kfold' if kfold else 'trainvaltest',
      files={s: tuple(f'{s}{i}' for i in range(clips)) for s in splits},
      targets={}, groups=groups)


def draw(rng, clips, labels, skill, kind='multiclass'):
  """Returns (p_NC, y_NC) of clips that a predictor of some skill meets."""
  if kind == 'multiclass':
    y_NC = np.eye(labels)[rng.integers(0, labels, clips)]
  else:
    y_NC = (rng.random((clips, labels)) < .2).astype(float)
  z_NC = skill * y_NC + rng.standard_normal((clips, labels))
  if kind == 'multilabel':
    return 1 / (1 + np.exp(-z_NC)), y_NC
  return np.exp(z_NC) / np.exp(z_NC).sum(1, keepdims=True), y_NC


def result_of(task, p_NC, y_NC, seeds=None):
  """Returns a result, as a protocol would, of predictions for 'test'."""
  split = folds.Split(np.zeros((len(y_NC), 1)), y_NC, [], {})
  fold = folds.Fold('test', None, None, (split, None))
  test = predictions.tested(task, fold, p_NC, {})
  resampled = predictions.resamples(task, [test])
  result = predictions.aggregate(task, [
      {'split': 'test', 'score': test.scores[task.evaluation[0]],
       'scores': test.scores, 'valid': 0.}])
  sources = {name: {'clips': intervals.of_clips(q_B, len(y_NC)),
                    'seeds': seeds} for name, q_B in resampled.items()}
  return {**result, **intervals.fields(task, result, resampled, sources, {})}


@pytest.mark.parametrize('name', SCENE)
def test_resampled_scenes_are_the_measure_of_the_clips_drawn(name):
  rng = np.random.default_rng(0)
  # Rounded, so that there are ties.
  p_NC, y_NC = np.round(rng.random((50, 14)), 1), np.zeros((50, 14))
  y_NC[np.arange(50), np.r_[np.arange(14), rng.integers(0, 14, 36)]] = 1
  count_BN = rng.multinomial(150, np.full(50, .02), size=20)
  whole = (count_BN @ y_NC > 0).all(1)
  got_B = scores.scene_resampled(name, p_NC, y_NC, count_BN)
  index = np.arange(50)
  assert whole.sum() > 3
  for b in np.flatnonzero(whole):
    rows = np.repeat(index, count_BN[b])
    np.testing.assert_allclose(
        got_B[b], scores.SCENE[name](p_NC[rows], y_NC[rows]), rtol=1e-12)


def test_resampled_events_are_the_measure_of_the_files_drawn():
  rng = np.random.default_rng(0)
  events = lambda: [
      {'label': 'ab'[rng.integers(2)], 'start': s, 'end': s + 300.}
      for s in 1000. * rng.integers(0, 3, rng.integers(0, 4))]
  reference = {f'{i}': events() for i in range(12)}
  predicted = {f'{i}': events() for i in range(12)}
  count_BF = rng.multinomial(12, np.full(12, 1 / 12), size=8)
  for name in scores.EVENT:
    got_B = scores.event_resampled(name, predicted, reference, 'ab', count_BF)
    for b, count_F in enumerate(count_BF):
      files = [(f'{i}', k) for i, n in enumerate(count_F) for k in range(n)]
      copies = lambda of, files=files: {f'{f}/{k}': of[f] for f, k in files}
      want = scores.event([name], copies(predicted), copies(reference), 'ab')
      assert got_B[b] == pytest.approx(want[name], rel=1e-12)


def test_classes_that_a_resample_lacks_are_left_out_of_it():
  p_NC = np.array([[.9, .1], [.8, .2], [.1, .7]])
  y_NC = np.array([[1, 0], [1, 0], [0, 1]])
  count_BN = np.array([[2, 1, 0], [1, 1, 1]])
  assert scores.scene_resampled('mAP', p_NC, y_NC, count_BN).tolist() == [1, 1]
  auc_B = scores.scene_resampled('aucroc', p_NC, y_NC, count_BN)
  assert math.isnan(auc_B[0]) and auc_B[1] == 1


def test_the_interval_of_an_accuracy_is_wilsons():
  """With one row a clip the resampled variance is the binomial one."""
  y_NC = np.eye(2)[np.arange(100) % 2]
  p_NC = y_NC.copy()
  p_NC[:20] = 1 - p_NC[:20]
  result = result_of(toy_task(100, 2), p_NC, y_NC)
  # Wilson's by the textbook at 80 of 100; the bootstrap's standard error has
  # a relative error of 1 / sqrt(2 * 500), and t(99) stands for the normal.
  assert result['se'] == pytest.approx(math.sqrt(.8 * .2 / 99), rel=.1)
  assert result['low'] == pytest.approx(.711, abs=.012)
  assert result['high'] == pytest.approx(.867, abs=.012)
  perfect = result_of(toy_task(100, 2), y_NC, y_NC)
  assert perfect['high'] == 1
  assert perfect['low'] == pytest.approx(.962, abs=.003)
  assert perfect['clips'] == perfect['units'] == 100


def test_clips_of_one_recording_count_as_one():
  """Five copies of each clip: the interval is that of the clips themselves."""
  rng = np.random.default_rng(1)
  p_NC, y_NC = draw(rng, 60, 4, 1.5)
  alone = result_of(toy_task(60), p_NC, y_NC)
  copies = [np.repeat(x, 5, axis=0) for x in (p_NC, y_NC)]
  names = {'test': tuple(f'g{i:03}' for i in range(60) for _ in range(5))}
  grouped = result_of(toy_task(300, groups=names), *copies)
  assert (grouped['unit'], grouped['units'], grouped['clips']) == (
      'group', 60, 300)
  by_clip = result_of(toy_task(300), *copies)
  assert by_clip['se'] < .5 * alone['se']


def test_folds_of_one_group_each_vary_as_folds_do():
  """The resample takes whole folds: its variance is that of their means."""
  value_F = np.array([.2, .5, .6, .4, .9])
  task = toy_task(10, kfold=5, groups={
      f'fold{i}': (f'kit{i}',) * 10 for i in range(5)})
  units = intervals.units(task)
  count_BU = intervals.draws(units.total)
  q_B = intervals.combine(
      [np.where(count_BU[:, i] > 0, v, np.nan) for i, v in enumerate(value_F)],
      [count_BU[:, i] for i in range(5)])
  source = intervals.of_clips(q_B, 5)
  assert source.free == 4
  # 500 resamples know a variance to 6 %.
  assert source.variance == pytest.approx(value_F.var(ddof=1) / 5, rel=.2)


def test_sources_add_up_and_folds_hold_clips_and_seeds():
  clips, seeds = intervals.Source(4., 100), intervals.Source(1., 2)
  both = intervals.total({'clips': clips, 'seeds': seeds})
  # Welch and Satterthwaite: 25 / (16 / 100 + 1 / 2).
  assert both.variance == 5 and both.free == pytest.approx(37.9, abs=.1)
  folds_ = intervals.Source(9., 4)
  assert intervals.total({'clips': clips, 'seeds': seeds, 'folds': folds_}
                         ) == folds_
  assert intervals.total({'clips': clips, 'folds': intervals.Source(3., 4)}
                         ) == clips
  assert intervals.total({'clips': None, 'seeds': seeds}) is None


def test_choice_is_shared_by_how_often_each_would_win():
  q_PB = np.array([[.5, .5, .2, .1], [.4, .6, .3, .1], [np.nan] * 4])
  share_P = intervals.chosen_share(q_PB)
  assert share_P.tolist() == [.5, .5, 0]  # Of equals the earlier one.
  source = intervals.of_choice([.6, .8, math.nan], share_P)
  assert source.variance == pytest.approx(.01)


def test_what_is_known_of_differences():
  rng = np.random.default_rng(0)
  task, (p_NC, y_NC) = toy_task(200), draw(rng, 200, 4, 1.5)
  ours = result_of(task, p_NC, y_NC)
  gap, same = intervals.difference(ours, ours)
  assert gap == 0 and same.se == 0
  # A little worse on the same clips: known far better than each score is.
  other = p_NC.copy()
  other[:10] = np.roll(y_NC[:10], 1, axis=1)
  gap, near = intervals.difference(ours, result_of(task, other, y_NC))
  assert 0 < near.low < gap < near.high and near.se < .6 * ours['se']
  # Seeds of both count, and what a record lost makes the interval unknown.
  noisy = result_of(task, other, y_NC, intervals.Source(.01, 4))
  gap, wide = intervals.difference(ours, noisy)
  assert wide.se > .1
  gap, unknown = intervals.difference(ours, {**noisy, 'resamples': None})
  assert gap > 0 and math.isnan(unknown.low)


def test_fields_survive_json():
  rng = np.random.default_rng(0)
  result = result_of(toy_task(40), *draw(rng, 40, 4, 1.))
  again = json.loads(json.dumps(result))
  assert again == result
  q_B = intervals.decode(again['resamples'])
  assert len(q_B) == intervals.RESAMPLES
  # Few bytes a record: hundreds of runs on tens of tasks stay within 100 MB.
  assert len(json.dumps(result)) < 5_000


def covers(task, labels, skill, kind, clips, studies):
  """Returns the share of intervals that hold the mean score of test sets."""
  lows, highs, values = [], [], []
  for seed in range(studies):
    p_NC, y_NC = draw(np.random.default_rng(seed), clips, labels, skill, kind)
    result = result_of(task, p_NC, y_NC)
    values.append(result['score'])
    lows.append(result['low'])
    highs.append(result['high'])
  truth = np.mean(values)
  assert (np.asarray(lows) >= 0).all() and (np.asarray(highs) <= 1).all()
  return np.mean((np.asarray(lows) <= truth) & (truth <= np.asarray(highs)))


def test_intervals_cover_an_accuracy():
  # Binomial, 3 standard errors at 100 studies: .065.
  assert covers(toy_task(60), 4, 2., 'multiclass', 60, 100) >= .95 - .065


@pytest.mark.slow
@pytest.mark.parametrize('measure, kind, clips, skill, least', [
    ('top1_acc', 'multiclass', 24, 1., .95),
    ('top1_acc', 'multiclass', 24, 4., .95),
    ('top1_acc', 'multiclass', 400, 4., .95),
    ('aucroc', 'multiclass', 100, 1.5, .95),
    # Average precision of few positives a class is skewed.
    ('mAP', 'multiclass', 24, 1., .92), ('mAP', 'multiclass', 400, 1., .94),
    ('mAP', 'multilabel', 100, 1.5, .91), ('mAP', 'multilabel', 400, 1.5, .93)])
def test_intervals_cover_every_measure(measure, kind, clips, skill, least):
  task = toy_task(clips, 4, measure, kind=kind)
  share = covers(task, 4, skill, kind, clips, 400)
  # Two standard errors of the simulation: .022.
  assert least - .022 <= share


@pytest.mark.slow
def test_differences_cover_and_equal_networks_are_not_told_apart():
  """Two networks of one skill, correlated by their clips."""
  task, told, held = toy_task(100), 0, 0
  for seed in range(400):
    rng = np.random.default_rng(seed)
    z_NC = rng.standard_normal((100, 4))
    y_NC = np.eye(4)[rng.integers(0, 4, 100)]
    results = [result_of(task, 1.2 * y_NC + z_NC + rng.standard_normal(
        z_NC.shape), y_NC) for _ in range(2)]
    _, interval = intervals.difference(*results)
    told += interval.low > 0
    held += interval.low <= 0 <= interval.high
  assert held / 400 >= .95 - .022
  assert told / 400 <= .025 + .016


@pytest.mark.slow
def test_events_cover():
  truth_of = lambda rng: [
      {'label': 'a', 'start': 1000. * s, 'end': 1000. * s + 300}
      for s in np.flatnonzero(rng.random(8) < .4)]

  def study(seed, files=40):
    rng = np.random.default_rng(seed)
    reference = {f'{i}': truth_of(rng) for i in range(files)}
    # A file is heard well or badly as a whole.
    predicted = {f: [e for e in events if rng.random() < skill] +
                 truth_of(rng)[:1] for (f, events), skill in
                 zip(reference.items(), rng.choice([.3, .9], files))}
    name = 'event_onset_200ms_fms'
    value = scores.event([name], predicted, reference, 'a')[name]
    q_B = scores.event_resampled(name, predicted, reference, 'a',
                                 intervals.draws(files))
    return value, intervals.interval(
        value, intervals.of_clips(q_B, files), True, files)

  values, found = zip(*map(study, range(400)))
  mean = np.mean(values)
  assert np.mean([i.low <= mean <= i.high for i in found]) >= .95 - .022


def test_chance_ignores_the_clips():
  y_NC = np.eye(4)[[0, 0, 0, 1, 2, 3]]
  task = toy_task(6)._replace(
      targets=dict.fromkeys(('train', 'valid', 'test'), y_NC),
      evaluation=('top1_acc', 'mAP', 'aucroc', 'd_prime'))
  chance = predictions.chance(task)
  assert chance['top1_acc'] == .5 and chance['aucroc'] == .5
  assert chance['mAP'] == pytest.approx(.25) and chance['d_prime'] == 0
  event = task._replace(
      embedding_type='event', evaluation=scores.EVENT,
      targets=dict.fromkeys(('train', 'valid', 'test'), (
          [{'label': 'a', 'start': 0., 'end': 900.}],) * 6))
  assert predictions.chance(event) == {
      **dict.fromkeys(scores.ONSET_MS, 0.),
      'segment_1s_er': pytest.approx(1)}


def test_a_small_move_of_the_embeddings_moves_the_score_little():
  """A choice of one penalty jumped by .02 to .06 here: averages do not."""
  rng = np.random.default_rng(0)
  splits = {'train': 150, 'valid': 40, 'test': 300}
  rule_DC = rng.standard_normal((16, 4))
  z = {s: rng.standard_normal((n, 16)) for s, n in splits.items()}
  targets = {s: np.eye(4)[(z[s] @ rule_DC + 4 * rng.standard_normal(
      (n, 4))).argmax(1)].astype(np.uint8) for s, n in splits.items()}
  task = toy_task(1)._replace(targets=targets, files={
      s: tuple(f'{s}{i}' for i in range(n)) for s, n in splits.items()})
  results = [probe.logistic(task, {
      s: z_ND + 1e-3 * np.random.default_rng(seed).standard_normal(z_ND.shape)
      for s, z_ND in z.items()}) for seed in range(4)]
  values = [r['score'] for r in results]
  # A clip of 300 is .0033.
  assert np.ptp(values) <= .011
  for other in results[1:]:
    gap, interval = intervals.difference(results[0], other)
    assert interval.low <= 0 <= interval.high


@pytest.mark.parametrize('name', ['mini_drum_type-v1-full',
                                  'mini_speech_music_sfx-v1-full'])
@pytest.mark.slow
def test_lossy_and_16_bit_clips_of_a_task_agree(shared, tmp_path, name):
  """The same clips as .opus and as 16-bit .wav, mean MFCC as embeddings."""
  import soundfile

  from audiorank import encoders
  from audiorank import evaluate
  source = shared / 'corpus/tasks' / name
  if not source.is_dir():
    pytest.skip('real audio not present')
  copy = tmp_path / name
  for path in source.rglob('*'):
    target = copy / path.relative_to(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.opus':
      wave_S, rate = soundfile.read(path, dtype='int16')
      soundfile.write(target.with_suffix('.wav'), wave_S, rate, 'PCM_16')
    elif path.is_file():
      target.write_bytes(path.read_bytes())
  encoder = encoders.features('mfcc')
  for settings in ({'protocol': 'logistic'},
                   {'protocol': 'hear', 'grid_points': 3, 'hidden': 256,
                    'max_epochs': 150}):
    results = [evaluate.score(encoder, folder, settings)['result']
               for folder in (source, copy)]
    gap, interval = intervals.difference(*results)
    assert interval.low <= 0 <= interval.high
    assert results[0]['low'] < results[1]['score'] < results[0]['high']
