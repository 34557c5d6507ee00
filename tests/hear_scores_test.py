"""Scores: equal to the kit's where it has a number, and where it has none."""

import json
import math

import numpy as np
import pytest

from audiorank.hear import events
from audiorank.hear import scores


@pytest.fixture(scope='module')
def cases(shared):
  return json.loads((shared / 'fixtures/hear/score_cases.json').read_text())


def number(value):
  return math.nan if value is None else float(value)


def test_scene_cases(cases):
  for case in cases['scene_cases']:
    p_NC, y_NC = np.asarray(case['pred']), np.asarray(case['target'])
    for name, value in case['scores'].items():
      # assert_allclose treats equal infinities and NaNs as equal.
      np.testing.assert_allclose(
          scores.SCENE[name](p_NC, y_NC), number(value), rtol=0, atol=1e-6)


def test_event_cases(cases):
  for case in cases['event_cases']:
    for name, values in case['scores'].items():
      got = scores.event([name], case['predicted'], case['target'],
                         list(cases['labels']))
      np.testing.assert_allclose(
          list(got.values()), [number(value) for _, value in values],
          rtol=1e-6, atol=1e-6)


def test_postprocessing_cases(cases):
  for case in cases['postproc_cases']:
    got = events.decode(case['pred'], case['timestamps'], list(cases['labels']),
                        case['median_filter_ms'], case['min_duration'])
    assert got == case['events']


def test_against_sklearn():
  metrics = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  for n in (5, 40, 300):
    y_NC = (rng.random((n, 7)) < 0.4).astype(np.uint8)
    y_NC[:2] = [[0], [1]]
    # Rounded, so that there are ties.
    p_NC = np.round(rng.random((n, 7)) + 0.2 * y_NC, 1)
    # Sums of n terms in another order: far within 1e-12.
    np.testing.assert_allclose(
        scores.mean_ap(p_NC, y_NC),
        metrics.average_precision_score(y_NC, p_NC, average='macro'),
        rtol=1e-12)
    np.testing.assert_allclose(
        scores.auc(p_NC, y_NC),
        metrics.roc_auc_score(y_NC, p_NC, average=None), rtol=1e-12)


def test_rank_scores_ignore_monotone_maps():
  rng = np.random.default_rng(1)
  p_NC, y_NC = rng.random((60, 4)), (rng.random((60, 4)) < 0.3) * 1
  for score in (scores.mean_ap, scores.aucroc, scores.d_prime):
    assert score(p_NC, y_NC) == score(np.exp(3 * p_NC), y_NC)


def test_undefined_and_infinite():
  p_NC = np.array([[.9, .1], [.8, .2], [.1, .7]])
  y_NC = np.array([[1, 0], [1, 0], [0, 1]])
  assert scores.aucroc(p_NC, y_NC) == 1 and scores.mean_ap(p_NC, y_NC) == 1
  assert scores.d_prime(p_NC, y_NC) == math.inf
  y_NC = np.array([[1, 0], [1, 0], [1, 0]])
  assert math.isnan(scores.aucroc(p_NC, y_NC))
  assert math.isnan(scores.d_prime(p_NC, y_NC))
  p_NC[0, 1] = math.nan
  assert math.isnan(scores.aucroc(p_NC, np.array([[1, 0], [1, 0], [0, 1]])))
  p_NC[0, 1] = .1
  # Of the two classes one is found whole, the other counts 0.
  assert scores.mean_ap(p_NC, y_NC) == 0.5


def test_no_predicted_event_has_no_f():
  truth = {'f': [{'label': 'a', 'start': 0., 'end': 100.}]}
  got = scores.event(['event_onset_50ms_fms', 'segment_1s_er'], {'f': []},
                     truth, ['a'])
  assert math.isnan(got['event_onset_50ms_fms'])
  assert got['event_onset_50ms_fms_recall'] == 0
  assert got['segment_1s_er'] == pytest.approx(1)


def test_matching_is_the_largest_one():
  # Pairing 0 with 40 first would leave 60 alone: both can be matched.
  at = lambda *starts: {'f': [{'label': 'a', 'start': s, 'end': s + 1.}
                              for s in starts]}
  got = scores.event_onset_fms(at(40., -30.), at(0., 80.), 50.)
  assert got == {'f_measure': 1, 'precision': 1, 'recall': 1}


def test_chroma_forgives_octaves():
  p_NC, y_NC = np.eye(24)[[0, 13, 5]], np.eye(24)[[12, 1, 6]]
  assert scores.top1_acc(p_NC, y_NC) == 0
  assert scores.chroma_acc(p_NC, y_NC) == pytest.approx(2 / 3)


def test_decode():
  ms_L = 20. + 40. * np.arange(8)
  p_LC = np.array([[.1, .9], [.6, .9], [.6, .5], [.1, .5], [.1, .9], [.6, .1],
                   [.1, .1], [.1, .9]])
  got = events.decode(p_LC, ms_L, ['x', 'y'], 0, 0)
  assert got == [
      {'label': 'y', 'start': 20., 'end': 60.},
      {'label': 'x', 'start': 60., 'end': 100.},
      {'label': 'y', 'start': 180., 'end': 180.},
      {'label': 'x', 'start': 220., 'end': 220.},
      {'label': 'y', 'start': 300., 'end': 300.}]
  kept = events.decode(p_LC, ms_L, 'xy', 0, 40)
  assert [event['start'] for event in kept] == [20, 60]


def test_choice_of_postprocessing():
  grid = [{'median_filter_ms': 250, 'min_duration': m} for m in (125, 250)]
  assert events.choose(grid, lambda _: 0.5)[0]['min_duration'] == 250
  best, value = events.choose(
      grid, lambda s: math.nan if s['min_duration'] == 250 else 0.1)
  assert (best['min_duration'], value) == (125, 0.1)


def test_rescoring_the_kits_predictions(shared):
  """From the kit's frame and clip probabilities to the kit's test scores."""
  folder = shared / 'fixtures/hear'
  runs = json.loads((folder / 'official_runs.json').read_text())
  with np.load(folder / 'official_runs.npz') as arrays:
    for name, run in runs.items():
      labels = [row.split(',')[1] for row in
                run['labelvocabulary'].split()[1:]]
      names = run['metadata']['evaluation']
      for split in [s for s in run['metadata']['splits']
                    if f'{name}/{s}/prediction' in arrays]:
        p_NC = arrays[f'{name}/{split}/prediction']
        if run['metadata']['embedding_type'] == 'scene':
          got = scores.scene(names, p_NC, arrays[f'{name}/{split}/target'])
        else:
          rows = run['filename_timestamps'][split]
          frames = [(file, [ms for other, ms in rows if other == file])
                    for file in dict.fromkeys(file for file, _ in rows)]
          found = events.decode_files(p_NC, frames, labels,
                                      dict(run['scores']['postprocessing']))
          assert found == run['predicted_events'][split]
          got = scores.event(names, found, run['splits'][split], labels)
        for score, value in got.items():
          # The kit stores float32.
          np.testing.assert_allclose(
              value, run['scores'][split][f'test_{score}'], rtol=1e-6)
