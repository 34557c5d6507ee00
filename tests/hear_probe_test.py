"""Predictors: the kit's protocol, padding without trace, equal runs equal."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from audiorank.hear import events
from audiorank.hear import folds
from audiorank.hear import linear
from audiorank.hear import predictor
from audiorank.hear import probe
from audiorank.hear import scores
from audiorank.hear import search
from audiorank.hear import tasks

QUICK = dict(grid_points=1, hidden=32, max_epochs=30)


def toy(clips=40, labels=3, width=5, kfold=0, kind='multiclass', seed=0,
        score='top1_acc', **metadata):
  """A scene task that exists in memory only, and embeddings that solve it."""
  rng = np.random.default_rng(seed)
  splits = (tuple(f'fold{i:02d}' for i in range(kfold)) if kfold else
            ('train', 'valid', 'test'))
  rule_DC = rng.standard_normal((width, labels))
  files, targets, embeddings = {}, {}, {}
  for i, split in enumerate(splits):
    n = clips + 3 * i
    z_ND = rng.standard_normal((n, width)).astype(np.float32) + 1
    logits_NC = z_ND @ rule_DC + rng.standard_normal((n, labels))
    targets[split] = (np.eye(labels)[logits_NC.argmax(1)] if
                      kind == 'multiclass' else logits_NC > 0).astype(np.uint8)
    files[split] = tuple(f'{split}-{j}.wav' for j in range(n))
    embeddings[split] = z_ND
  task = tasks.Task(
      name='toy', folder=None, metadata=metadata, embedding_type='scene',
      prediction_type=kind, splits=splits, labels=tuple('abcdefgh'[:labels]),
      split_mode='new_split_kfold' if kfold else 'trainvaltest', files=files,
      targets=targets, paths={}, rate=16000, sample_duration=1.,
      evaluation=(score,))
  return task, embeddings


def official(shared, name):
  """A fixture task in memory with the kit's embeddings, and the kit's run."""
  run = json.loads(
      (shared / 'fixtures/hear/official_runs.json').read_text())[name]
  labels = tuple(
      row.split(',')[1] for row in run['labelvocabulary'].split()[1:])
  scene = run['metadata']['embedding_type'] == 'scene'
  files, targets, embeddings = {}, {}, {}
  with np.load(shared / 'fixtures/hear/official_runs.npz') as arrays:
    for split in run['metadata']['splits']:
      z_ND = arrays[f'{name}/{split}/emb']
      if scene:
        files[split], embeddings[split] = run['memmap_file_order'][split], z_ND
        targets[split] = np.array([[label in found for label in labels] for
                                   found in run['target_labels'][split]])
        continue
      rows = run['filename_timestamps'][split]
      files[split] = list(dict.fromkeys(file for file, _ in rows))
      targets[split] = tuple(run['splits'][split][f] for f in files[split])
      for file in files[split]:
        index = [i for i, row in enumerate(rows) if row[0] == file]
        embeddings[file] = z_ND[index], np.array([rows[i][1] for i in index])
  task = tasks.Task(
      name=name, folder=None, metadata=run['metadata'],
      embedding_type=run['metadata']['embedding_type'],
      prediction_type=run['metadata']['prediction_type'],
      split_mode=run['metadata']['split_mode'],
      splits=tuple(run['metadata']['splits']), labels=labels, files=files,
      targets=targets, paths={}, rate=16000, sample_duration=.5,
      evaluation=tuple(run['metadata']['evaluation']))
  return task, embeddings, run


def test_the_eight_points():
  """The order that hear-eval-kit's seed 42 gives, for every task."""
  knobs = dict(grid_points=8, max_epochs=500, check_every=3, patience=20)
  points, schedule = probe.search_space(toy()[0], knobs)
  got = [(p['hidden_layers'], p['lr'], p['initialization'][7].upper())
         for p in points]
  assert got == [
      (1, 1e-4, 'N'), (2, 1e-3, 'U'), (1, 1e-3, 'N'), (1, 3.2e-4, 'N'),
      (2, 3.2e-4, 'N'), (2, 3.2e-4, 'U'), (2, 3.2e-3, 'N'), (2, 3.2e-3, 'U')]
  assert schedule == dict(max_epochs=500, check_every=3, patience=20)
  task, _ = toy(evaluation_params={'task_specific_param_grid': {
      'max_epochs': [50], 'check_val_every_n_epoch': [1]}})
  points, schedule = probe.search_space(task, knobs)
  assert len(points) == 8
  assert schedule == dict(max_epochs=50, check_every=1, patience=20)
  task, _ = toy(task_name='dcase2016_task2')
  assert probe.search_space(task, knobs)[1]['check_every'] == 10
  task, _ = toy(evaluation_params={'task_specific_param_grid': {'optim': [1]}})
  with pytest.raises(ValueError, match='optim'):
    probe.search_space(task, knobs)


def reference_training(net, z_ND, y_ND, batch, epochs, lr, multiclass):
  """The network and Adam by hand, in float64: torch's documented formulas."""
  layers = [*net['hidden'], net['out']]
  layers = [{k: np.array(v, np.float64) for k, v in l.items()} for l in layers]
  moments = [{k: [0., 0.] for k in l} for l in layers]
  stats = [[0., 1.] for _ in layers[:-1]]
  step = 0
  for _ in range(epochs):
    for start in range(0, len(z_ND), batch):
      x, y = z_ND[start:start + batch], y_ND[start:start + batch]
      n, kept = len(x), []
      for i, layer in enumerate(layers[:-1]):
        h = x @ layer['kernel'] + layer['bias']
        mean, var = h.mean(0), h.var(0)
        u = (h - mean) / np.sqrt(var + 1e-5)
        kept.append((x, u, var))
        x = np.maximum(u * layer['scale'] + layer['shift'], 0)
        stats[i][0] = .9 * stats[i][0] + .1 * mean
        stats[i][1] = .9 * stats[i][1] + .1 * h.var(0, ddof=1)
      out = x @ layers[-1]['kernel'] + layers[-1]['bias']
      if multiclass:
        p = np.exp(out - out.max(1, keepdims=True))
        g = (p / p.sum(1, keepdims=True) - y) / n
      else:
        g = (1 / (1 + np.exp(-out)) - y) / y.size
      grads = [{'kernel': x.T @ g, 'bias': g.sum(0)}]
      g = (g @ layers[-1]['kernel'].T) * (x > 0)
      for layer, (x, u, var) in zip(layers[-2::-1], kept[::-1]):
        grads.insert(0, {'scale': (g * u).sum(0), 'shift': g.sum(0)})
        g = g * layer['scale']
        g = (g - g.mean(0) - u * (g * u).mean(0)) / np.sqrt(var + 1e-5)
        grads[0].update(kernel=x.T @ g, bias=g.sum(0))
        g = (g @ layer['kernel'].T) * (x > 0)
      step += 1
      for layer, grad, moment in zip(layers, grads, moments):
        for name in layer:
          m = moment[name]
          m[0] = .9 * m[0] + .1 * grad[name]
          m[1] = .999 * m[1] + .001 * grad[name] ** 2
          layer[name] -= lr * (m[0] / (1 - .9 ** step)) / (
              np.sqrt(m[1] / (1 - .999 ** step)) + 1e-8)
  return layers, stats


@pytest.mark.parametrize('multiclass', [True, False])
@pytest.mark.parametrize('depth', [1, 2])
def test_training_equals_a_float64_reference(monkeypatch, multiclass, depth):
  """Two batches, the last one partial, padded rows, widths and labels."""
  monkeypatch.setattr(predictor, 'DROPOUT', 0.)
  monkeypatch.setattr(predictor, 'BATCH', 32)
  monkeypatch.setattr(predictor, 'ROWS', (32,))
  rng = np.random.default_rng(3)
  z_ND = 2 + rng.standard_normal((52, 7)).astype(np.float32)
  y_NC = np.eye(5)[rng.integers(0, 5, 52)]
  net = predictor.init(rng, (7, *[16] * depth, 5), 'xavier_normal')
  bare = jax.tree.map(np.copy, net)
  bare['hidden'][0]['kernel'] = bare['hidden'][0]['kernel'][:7]
  bare['out'] = {'kernel': bare['out']['kernel'][:, :5],
                 'bias': bare['out']['bias'][:5]}
  layers, stats = reference_training(bare, z_ND, y_NC, 32, 6, 1e-3, multiclass)
  rows = predictor.rows(z_ND, y_NC, 96)
  assert rows.z_ABD.shape == (3, 32, 128)
  train = jax.jit(functools.partial(
      predictor._advance, lr=np.float32(1e-3), word=np.uint32(1),
      multiclass=multiclass, shuffled=False))
  net, ours, _, step = train(predictor.begin(net), 0, 6, rows)
  assert step == 12
  # Float32 over 12 Adam steps of 1e-3; a bias ahead of BatchNorm has no
  # gradient but rounding, which Adam turns into steps: it is left out.
  for got, expected in zip([*net['hidden'], net['out']], layers):
    for name in expected:
      if name == 'bias' and 'scale' in expected:
        continue
      value = np.asarray(got[name])[
          tuple(slice(n) for n in expected[name].shape)]
      np.testing.assert_allclose(value, expected[name], atol=2e-4)
  for got, (_, var) in zip(ours, stats):
    np.testing.assert_allclose(got['var'], var, rtol=2e-3)
  # What does not exist stays out: extra inputs and labels have no weight.
  assert not np.asarray(net['hidden'][0]['kernel'])[7:].any()
  assert (np.asarray(net['out']['bias'])[5:] == predictor.NEVER).all()


def test_initialisation():
  """Xavier's deviations, gain sqrt 2 after a ReLU, torch's biases."""
  rng = np.random.default_rng(0)
  for kind in ('xavier_normal', 'xavier_uniform'):
    net = predictor.init(rng, (256, 512, 512, 96), kind)
    kernels = [l['kernel'] for l in (*net['hidden'], net['out'])]
    for kernel_IO, gain in zip(kernels, (1, math.sqrt(2), math.sqrt(2))):
      std = gain * math.sqrt(2 / sum(kernel_IO.shape))
      # Relative error of a deviation from n draws: below 1 / sqrt(n).
      np.testing.assert_allclose(kernel_IO.std(), std,
                                 rtol=5 / math.sqrt(kernel_IO.size))
      if kind == 'xavier_uniform':
        assert np.abs(kernel_IO).max() <= math.sqrt(3) * std
    bias_H = net['hidden'][0]['bias']
    assert 0.9 / 16 < np.abs(bias_H).max() <= 1 / 16
  with pytest.raises(ValueError, match='xavier'):
    predictor.init(rng, (2, 2), 'zeros')


def test_dropout_is_a_fair_hash():
  hashed = predictor.hashed
  keep = np.stack([predictor.survivors(np.uint32(hashed(np.uint32(w))),
                                       (256, 512)) for w in range(20)])
  # 2.6 M draws: the rate within 5 standard errors, and each unit and row.
  assert abs(keep.mean() - .9) < 5 * .3 / math.sqrt(keep.size)
  assert np.abs(keep.mean((0, 1)) - .9).max() < 6 * .3 / math.sqrt(20 * 256)
  assert np.abs(keep.mean((0, 2)) - .9).max() < 6 * .3 / math.sqrt(20 * 512)
  # Neighbours in step, row and unit are not correlated.
  off = keep - .9
  for a, b in ((off[1:], off[:-1]), (off[:, 1:], off[:, :-1]),
               (off[..., 1:], off[..., :-1])):
    assert abs((a * b).mean()) < 5 * .09 / math.sqrt(a.size)


@pytest.mark.parametrize('name', ['top1_acc', 'chroma_acc', 'mAP', 'aucroc',
                                  'd_prime'])
def test_scores_on_the_device_equal_those_on_the_host(name):
  rng = np.random.default_rng(5)
  # Rounded, so that there are ties.
  logits_NC = np.round(2 * rng.standard_normal((50, 14)), 1).astype(np.float32)
  y_NC = np.eye(14)[np.r_[np.arange(14), rng.integers(0, 14, 36)]]
  rows = predictor.rows(np.zeros((50, 1)), y_NC)
  padded_NC = np.full((64, 16), predictor.NEVER, np.float32)
  padded_NC[:50, :14] = logits_NC
  padded_NC[50:] = 3
  got = predictor._monitor(name, padded_NC, rows, multiclass=True)
  p_NC = np.asarray(predictor.probabilities(logits_NC, True))
  np.testing.assert_allclose(got, scores.SCENE[name](p_NC, y_NC), rtol=2e-5,
                             atol=2e-6)


def test_result_is_plain_and_repeats_bit_for_bit():
  task, embeddings = toy(kfold=3)
  kwargs = {**QUICK, 'grid_points': 2}
  first = probe.evaluate(task, embeddings, **kwargs)
  assert first == json.loads(json.dumps(first))
  assert first == probe.evaluate(task, embeddings, **kwargs)
  assert first['protocol'] == 'hear-points2-hidden32-epochs30'
  assert [s['split'] for s in first['per_split']] == ['fold00', 'fold01',
                                                      'fold02']
  values = [s['score'] for s in first['per_split']]
  assert first['score'] == pytest.approx(np.mean(values))
  assert first['std'] == pytest.approx(np.std(values, ddof=1))
  assert all(s['epoch'] % 3 == 0 and s['epoch'] <= 30
             for s in first['per_split'])
  assert len(first['searched']) == 2


def test_one_program_for_many_models():
  """Another seed, width within 128, or fold: nothing is compiled again."""
  sizes = []
  for width, seed in ((5, 0), (5, 1), (90, 2)):
    task, embeddings = toy(kfold=3, width=width, seed=seed)
    probe.evaluate(task, embeddings, seed=seed, **QUICK)
    sizes.append(predictor.fit._cache_size())
  assert 0 < sizes[0] == sizes[1] == sizes[2]


def test_fits_side_by_side_have_the_bits_of_fits_one_by_one(monkeypatch):
  task, embeddings = toy(kfold=3)
  found = []
  for at_a_time in (1, 4):
    monkeypatch.setattr(search, 'AT_A_TIME', at_a_time)
    found.append(probe.evaluate(task, embeddings,
                                **{**QUICK, 'grid_points': 4}))
  assert found[0] == found[1]


def test_fits_side_by_side_keep_the_callers_context(monkeypatch):
  seen = lambda jobs: search._each(
      lambda job: jax.config.jax_default_matmul_precision, jobs)
  with jax.default_matmul_precision('highest'):
    assert seen(range(4)) == ['highest'] * 4
  assert seen(range(4)) == [None] * 4


def test_learns_and_stops_early():
  task, embeddings = toy(clips=200, labels=2)
  result = probe.evaluate(task, embeddings, grid_points=3, hidden=64,
                          patience=3)
  assert result['score'] > .75
  assert result['per_split'][0]['epochs'] < 500
  best = max(point['valid'] for point in result['searched'])
  assert result['valid'] == best
  first = next(p for p in result['searched'] if p['valid'] == best)
  assert {**result['grid'], 'valid': best} == first


def test_patience_counts_validations():
  """Labels without a pattern of one class only: the first score is the best."""
  task, embeddings = toy(labels=1)
  result = probe.evaluate(task, embeddings, grid_points=1, hidden=32,
                          patience=4)
  split, = result['per_split']
  assert (split['epoch'], split['epochs']) == (3, 15)
  assert result['score'] == 1 and result['std'] is None


def test_undefined_validation_is_reported():
  task, embeddings = toy(kind='multilabel', score='aucroc')
  task.targets['valid'][:, 0] = 0
  result = probe.evaluate(task, embeddings, grid_points=1, hidden=32,
                          max_epochs=30, patience=3)
  assert 'aucroc undefined at 3 of 3 validations' in result['notes'][0]
  assert math.isnan(result['valid']) and 0 < result['score'] < 1


def test_undefined_fold_is_left_out_and_noted():
  task, embeddings = toy(kfold=3, kind='multilabel', score='mAP')
  task = task._replace(evaluation=('mAP', 'aucroc'))
  task.targets['fold01'][:, 0] = 0
  result = probe.evaluate(task, embeddings, **QUICK)
  assert math.isnan(result['per_split'][1]['scores']['aucroc'])
  assert 0 < result['scores']['aucroc'] < 1
  assert any('aucroc is undefined on fold01' in n for n in result['notes'])


def test_shuffled_protocol(monkeypatch):
  task, embeddings = toy(kfold=3)
  monkeypatch.setattr(predictor, 'BATCH', 32)
  monkeypatch.setattr(predictor, 'ROWS', (32,))
  result = probe.evaluate(task, embeddings, protocol='shuffled', seeds=3,
                          **QUICK)
  assert result['protocol'] == 'shuffled-points1-hidden32-epochs30'
  assert result['low'] <= result['score'] <= result['high']
  assert [r['seed'] for r in result['per_seed']] == [42, 43, 44]
  assert result['score'] == pytest.approx(
      np.mean([r['score'] for r in result['per_seed']]))


def test_shuffling_permutes_real_rows_only():
  rows = jax.tree.map(jnp.asarray, predictor.rows(
      np.arange(1500.)[:, None], np.ones((1500, 1))))
  seen = []

  def collect(state, z_BD, y_BC, on_B, c, lr, word, multiclass):
    jax.debug.callback(
        lambda z_B, on_B: seen.append(z_B[on_B > 0]), z_BD[:, 0], on_B,
        ordered=True)
    return state

  original, predictor._batch = predictor._batch, collect
  try:
    for epoch in (0, 1):
      predictor._epoch(0, np.uint32(epoch), rows, 0., np.uint32(9), True, True)
    jax.effects_barrier()
  finally:
    predictor._batch = original
  epochs = np.concatenate(seen[:2]), np.concatenate(seen[2:])
  for got in epochs:
    np.testing.assert_array_equal(np.sort(got), np.arange(1500))
  assert (epochs[0] != epochs[1]).mean() > .99


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel'])
def test_logistic_regression_is_at_the_minimum(kind):
  task, embeddings = toy(kind=kind, clips=80)
  z_ND, y_NC = embeddings['train'], task.targets['train'].astype(float)
  multiclass = kind == 'multiclass'
  mean_D, basis_DD, spectrum_D = linear.standardise(z_ND)
  x_ND = linear.rotate(z_ND, mean_D, basis_DD)
  rows = predictor.rows(x_ND, y_NC)
  spectrum_D = np.pad(spectrum_D, (0, 128 - 5)).astype(np.float32)
  penalties = (.1, .001)
  w_PDC, b_PC, _ = linear.path(rows, spectrum_D, np.float32(penalties),
                               multiclass=multiclass)
  x_ND = (z_ND - z_ND.mean(0)) / z_ND.std(0)

  def objective(flat, penalty):
    w_DC, b_C = flat[:15].reshape(5, 3), flat[15:]
    logits_NC = x_ND @ w_DC + b_C
    if multiclass:
      top_N = logits_NC.max(1)
      value = np.mean(np.log(np.exp(logits_NC - top_N[:, None]).sum(1)) + top_N
                      - (logits_NC * y_NC).sum(1))
    else:
      value = np.mean((np.logaddexp(0, logits_NC) - logits_NC * y_NC).sum(1))
    return value + penalty / 2 * (w_DC ** 2).sum()

  for i, penalty in enumerate(penalties):
    best = optimize.minimize(objective, np.zeros(18), args=(penalty,))
    # Back from the eigenbasis, which is a rotation of the standardised axes.
    rotation_DD = basis_DD * z_ND.std(0)[:, None]
    w_DC = rotation_DD @ np.asarray(w_PDC[i])[:5, :3]
    got = objective(np.r_[w_DC.ravel(), np.asarray(b_PC[i])[:3]], penalty)
    assert got - best.fun < 1e-6


def test_logistic_protocol():
  task, embeddings = toy(kfold=4)
  result = probe.evaluate(task, embeddings, protocol='logistic')
  assert result == probe.logistic(task, embeddings)
  assert result == json.loads(json.dumps(result))
  assert result['protocol'] == 'logistic' and result['score'] > .6
  # Standardised: neither scale nor offset of a dimension matters, and a
  # constant dimension adds nothing.
  moved = {s: np.c_[z_ND * 8 - 64, np.full(len(z_ND), 7.)]
           for s, z_ND in embeddings.items()}
  assert probe.logistic(task, moved)['score'] == pytest.approx(
      result['score'], abs=.03)


@pytest.mark.parametrize('match, changed, kwargs', [
    ('protocol', {}, {'protocol': 'kit'}),
    ('hidden is 0', {}, {'hidden': 0}),
    ('at least one validation', {}, {'max_epochs': 2}),
    (r'train have shape \(3, 5\), expected \(40, width\)',
     {'train': np.zeros((3, 5))}, {}),
    ('differ in width', {'valid': np.zeros((43, 6))}, {}),
    ('230 values that are not finite', {'test': np.full((46, 5), np.nan)}, {})])
def test_refusals(match, changed, kwargs):
  task, embeddings = toy()
  with pytest.raises(ValueError, match=match) as caught:
    probe.evaluate(task, {**embeddings, **changed}, **{**QUICK, **kwargs})
  assert '\n' not in str(caught.value)


def test_refused_tasks():
  task, embeddings = toy()
  with pytest.raises(ValueError, match="no embeddings for split 'test'"):
    folds.load(task, {s: embeddings[s] for s in ('train', 'valid')})
  with pytest.raises(ValueError, match="'f1' is unknown"):
    folds.load(task._replace(evaluation=('f1',)), embeddings)


def test_batch_of_one_row_is_left_out_and_noted(monkeypatch):
  task, embeddings = toy(clips=65)
  monkeypatch.setattr(predictor, 'BATCH', 64)
  monkeypatch.setattr(predictor, 'ROWS', (64,))
  result = probe.evaluate(task, embeddings, **QUICK)
  assert any('1 of 65 training rows left out' in n for n in result['notes'])


def test_event_task_by_score(shared):
  task, embeddings, run = official(shared, 'toyev')
  result = probe.evaluate(task, embeddings, grid_points=1, hidden=128,
                          max_epochs=60, check_every=6)
  again = probe.evaluate(task, embeddings, grid_points=1, hidden=128,
                         max_epochs=60, check_every=6)
  assert result == again == json.loads(json.dumps(again))
  assert result['per_split'][0]['postprocessing']['min_duration'] in (125, 250)
  assert set(result['scores']) >= {'event_onset_200ms_fms', 'segment_1s_er'}
  # The kit reaches .87 with an eighth more width and eight times the epochs.
  assert result['score'] > .3


def test_event_task_without_a_predicted_event(shared, monkeypatch):
  monkeypatch.setattr(events, 'THRESHOLD', 1.)
  task, embeddings, _ = official(shared, 'toyev')
  result = probe.evaluate(task, embeddings, grid_points=1, hidden=128,
                          max_epochs=12)
  assert math.isnan(result['score'])
  assert 'undefined at 4 of 4 validations, first at epoch 3' in (
      result['notes'][-1])


def test_event_task_by_loss(shared):
  task, embeddings, run = official(shared, 'toyevk')
  result = probe.evaluate(task, embeddings, grid_points=1, hidden=128)
  assert result['settings']['max_epochs'] == 50
  assert result['settings']['check_every'] == 1
  # Early stopping looks at a loss: smaller is better, and it is positive.
  assert 0 < result['valid'] < 1
  assert result['per_split'][0]['postprocessing'] == {
      'median_filter_ms': 150, 'min_duration': 50}


def test_event_task_by_logistic_regression(shared):
  task, embeddings, _ = official(shared, 'toyevk')
  assert probe.logistic(task, embeddings)['score'] > .7


@pytest.mark.slow
@pytest.mark.parametrize('name, width', [('toymc', .15), ('toyml', .05),
                                         ('toyevk', .04)])
def test_scores_agree_with_the_kit(shared, name, width):
  """Within what both span over seeds, see the table in hear/README.md."""
  task, embeddings, run = official(shared, name)
  result = probe.evaluate(task, embeddings, grid_points=run['grid_points'])
  kit = run['scores'].get('aggregated_scores') or run['scores']['test']
  kit = kit.get('test_score_mean', kit.get('test_score'))
  assert result['protocol'].startswith('hear')
  assert result['score'] == pytest.approx(kit, abs=width)
