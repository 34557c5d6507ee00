"""kNN, X-ARES, few-shot and weighted layers, against their owners' code."""

import numpy as np
import pytest

from audiorank import encoders
from audiorank.export import xares
from audiorank.hear import probe
from audiorank.hear import protocols
from audiorank.hear import tasks
from tests import evaluate_test


def scene(tmp_path, clips=24, labels=3, mode='trainvaltest', kind='multiclass'):
  """A task without audio whose labels are known."""
  import json
  splits = {'trainvaltest': ['train', 'valid', 'test'],
            'new_split_kfold': ['fold0', 'fold1', 'fold2']}[mode]
  folder = tmp_path / f'toy-{mode}-{kind}'
  folder.mkdir()
  names = [f'c{i}' for i in range(labels)]
  (folder / 'labelvocabulary.csv').write_text('idx,label\n' + ''.join(
      f'{i},{name}\n' for i, name in enumerate(names)))
  (folder / 'task_metadata.json').write_text(json.dumps({
      'task_name': 'toy', 'embedding_type': 'scene', 'prediction_type': kind,
      'split_mode': mode, 'splits': splits, 'sample_duration': None,
      'evaluation': ['top1_acc' if kind == 'multiclass' else 'mAP']}))
  for split in splits:
    (folder / f'{split}.json').write_text(json.dumps({
        f'{i}.wav': [names[i % labels]] for i in range(clips)}))
  return tasks.load(folder, with_audio=False)


def embeddings(task, width=16, noise=1.5, seed=0):
  """Embeddings around one centre per label."""
  rng = np.random.default_rng(seed)
  centre_CD = rng.standard_normal((len(task.labels), width))
  return {split: (y_NC @ centre_CD + noise * rng.standard_normal(
      (len(y_NC), width))).astype(np.float32)
          for split, y_NC in task.targets.items()}


@pytest.mark.parametrize('columns', [False, True])
def test_neighbours_are_those_of_the_formula(columns):
  # The formula of xares.trainer.KNN in numpy, clip by clip, in float64.
  rng = np.random.default_rng(0)
  train_ND, test_ND = rng.normal(1, 1, (40, 6)), rng.normal(1, 1, (9, 6))
  label_N = rng.integers(0, 4, 40)
  y_NC = np.eye(4)[label_N]
  axis = 0 if columns else 1
  known_ND = train_ND / np.linalg.norm(train_ND, axis=axis, keepdims=True)
  got_NC = protocols.neighbours(train_ND, y_NC, test_ND, columns)
  for z_D, p_C in zip(test_ND, got_NC):
    cosine_N = known_ND @ z_D / np.linalg.norm(z_D)
    near = np.argsort(-cosine_N)[:10]
    weight = np.exp(cosine_N[near] / .07)
    want_C = np.zeros(4)
    np.add.at(want_C, label_N[near], weight / weight.sum())
    # float32 cosines, divided by .07.
    np.testing.assert_allclose(p_C, want_C, atol=2e-5)


@pytest.mark.parametrize('columns', [False, True])
def test_neighbours_are_those_of_xares(torch, columns):
  trainer = pytest.importorskip('xares.trainer')
  rng = np.random.default_rng(0)
  train_ND, test_ND = (rng.normal(1, 1, (n, 6)).astype(np.float32)
                       for n in (40, 9))
  label_N = rng.integers(0, 4, 40)
  model = trainer.KNN(torch.from_numpy(train_ND), torch.from_numpy(label_N),
                      num_classes=4)
  if not columns:  # As its authors describe it.
    model.train_features = torch.nn.functional.normalize(
        torch.from_numpy(train_ND)).T
  want_NC = model(torch.from_numpy(test_ND)).numpy()
  got_NC = protocols.neighbours(train_ND, np.eye(4)[label_N], test_ND, columns)
  np.testing.assert_allclose(got_NC, want_NC, atol=2e-5)


@pytest.mark.parametrize('labels', [2, 3])
def test_few_labels_are_fitted_as_by_sklearn(labels):
  linear = pytest.importorskip('sklearn.linear_model')
  rng = np.random.default_rng(1)
  z_ND = rng.standard_normal((8 * labels, 12))
  label_N = np.repeat(np.arange(labels), 8)
  z_ND[:, 0] += label_N
  other_ND = rng.standard_normal((20, 12))
  want = linear.LogisticRegression(max_iter=100).fit(z_ND, label_N)
  got_NC = protocols.regression(z_ND, np.eye(labels)[label_N])(other_ND)
  # Both stop at gradients of 1e-4.
  np.testing.assert_allclose(got_NC, want.predict_proba(other_ND), atol=1e-5)


def test_labels_are_drawn_as_by_mteb():
  label_N = np.random.default_rng(0).integers(0, 5, 200)
  # MTEB: one list, shuffled in place before each experiment.
  order = list(range(200))
  for draw in range(3):
    np.random.RandomState(42).shuffle(order)
    want, count = [], np.zeros(5)
    for i in order:
      if count[label_N[i]] < 8:
        want.append(i)
        count[label_N[i]] += 1
    assert protocols.drawn(label_N, 8, draw) == want


@pytest.mark.parametrize('mode, protocol', [
    ('trainvaltest', 'knn'), ('new_split_kfold', 'knn'),
    ('trainvaltest', 'xares_knn'), ('trainvaltest', 'xares'),
    ('new_split_kfold', 'xares'),
    # Ten draws, each with a fit.
    pytest.param('trainvaltest', 'fewshot', marks=pytest.mark.slow),
    pytest.param('new_split_kfold', 'fewshot', marks=pytest.mark.slow)])
def test_protocols_learn_and_have_intervals(tmp_path, mode, protocol):
  task = scene(tmp_path, mode=mode)
  good, bad = (probe.evaluate(task, embeddings(task, noise=noise),
                              protocol=protocol, seeds=2)
               for noise in (.3, 1e4))
  # Ten steps of Adam leave 'xares' short of what the clips allow.
  assert good['score'] > .7 > .6 > bad['score']
  assert good['low'] < good['score'] <= good['high'] <= 1
  assert good['protocol'].startswith(protocol)
  assert 'clips' in good['sources']
  assert ('folds' in good['sources']) == task.kfold
  again = probe.evaluate(task, embeddings(task, noise=.3), protocol=protocol,
                         seeds=2)
  assert again['score'] == good['score']


def test_knn_of_folds_takes_all_other_folds(tmp_path):
  task = scene(tmp_path, mode='new_split_kfold')
  z = embeddings(task)
  result = protocols.knn(task, z)
  want = []
  for split in task.splits:
    others = [s for s in task.splits if s != split]
    p_NC = protocols.neighbours(
        np.concatenate([z[s] for s in others]),
        np.concatenate([task.targets[s] for s in others]), z[split])
    want.append(np.mean(p_NC.argmax(1) == task.targets[split].argmax(1)))
  assert result['score'] == pytest.approx(np.mean(want))


def test_a_curve_over_labels(tmp_path):
  task = scene(tmp_path, clips=60)
  result = probe.evaluate(task, embeddings(task, noise=2.), protocol='fewshot',
                          shots=(2, 512))
  assert [row['shots'] for row in result['curve']] == [2, 512]
  assert result['protocol'] == 'fewshot2'
  few, most = (row['score'] for row in result['curve'])
  assert result['score'] == few < most
  with pytest.raises(ValueError, match='shots is'):
    protocols.fewshot(task, embeddings(task), shots=(0,))


def test_multilabel_neighbours_and_the_linear_layer(tmp_path):
  task = scene(tmp_path, kind='multilabel')
  for protocol in ('knn', 'xares'):
    result = probe.evaluate(task, embeddings(task, noise=.3), seeds=2,
                            protocol=protocol)
    assert result['score'] > .6
  with pytest.raises(ValueError, match='needs one label a clip'):
    probe.evaluate(task, embeddings(task), protocol='fewshot')


def test_weights_go_to_the_layer_that_knows(tmp_path):
  task = scene(tmp_path, clips=60)
  z = {0: embeddings(task, noise=1e3), 1: embeddings(task, noise=.5),
       'final': embeddings(task, noise=1e3, seed=2)}
  # On the same scale, as the layers of a model are.
  z = {layer: {s: (x - x.mean(0)) / x.std(0) for s, x in of.items()}
       for layer, of in z.items()}
  result = probe.evaluate(task, z, protocol='weighted', seeds=2)
  shares = result['layer_weights']
  assert list(shares) == ['0', '1', 'final']
  assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
  assert max(shares, key=shares.get) == '1'
  one = probe.evaluate(task, z[0], protocol='xares', seeds=2)
  assert result['score'] > one['score']
  z['final'] = {s: x[:, :5] for s, x in z['final'].items()}
  with pytest.raises(ValueError, match='needs layers of one width'):
    probe.evaluate(task, z, protocol='weighted')


def test_event_tasks_are_refused_in_one_line(tmp_path):
  task = tasks.load(evaluate_test.write_task(
      tmp_path / 'tones-v1-full', kind='event'))
  with pytest.raises(ValueError, match="'knn' is for scene tasks, not for ev"):
    probe.evaluate(task, {}, protocol='knn')


def test_the_linear_layer_is_that_of_torch(torch):
  rng = np.random.default_rng(0)
  x_ND = rng.standard_normal((70, 8)).astype(np.float32)
  y_NC = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 70)]
  order_EAB = np.full((10, 3, 32), -1, np.int32)
  for epoch in range(10):
    order_EAB[epoch].flat[:70] = rng.permutation(70)
  net = {'layers_K': np.zeros(1, np.float32),
         'scale_D': np.ones(8, np.float32), 'shift_D': np.zeros(8, np.float32),
         'kernel_DC': rng.uniform(-.3, .3, (8, 3)).astype(np.float32),
         'bias_C': rng.uniform(-.3, .3, 3).astype(np.float32)}
  got, _ = protocols.fit(net, x_ND[None], y_NC, order_EAB, multiclass=True)
  model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
  with torch.no_grad():
    model[1].weight.copy_(torch.from_numpy(net['kernel_DC'].T))
    model[1].bias.copy_(torch.from_numpy(net['bias_C']))
  adam = torch.optim.Adam(model.parameters(), lr=1e-3)
  for epoch in range(10):
    for group in adam.param_groups:
      group['lr'] = 1e-3 + (1e-4 - 1e-3) / 2 * (1 - np.cos(np.pi * epoch / 10))
    for index in order_EAB[epoch]:
      index = torch.from_numpy(index[index >= 0])
      adam.zero_grad()
      torch.nn.functional.cross_entropy(
          model(torch.from_numpy(x_ND)[index]),
          torch.from_numpy(y_NC)[index]).backward()
      adam.step()
  # 30 steps of Adam in float32, whose first steps divide by tiny moments.
  np.testing.assert_allclose(got['kernel_DC'],
                             model[1].weight.detach().numpy().T, atol=1e-5)
  np.testing.assert_allclose(got['scale_D'], model[0].weight.detach().numpy(),
                             atol=1e-5)


def test_xares_takes_our_encoder(torch, tmp_path, monkeypatch):
  checker = pytest.importorskip('xares.audio_encoder_checker')
  utils = pytest.importorskip('xares.utils')
  path = evaluate_test.write_weights(tmp_path / 'one.safetensors')
  monkeypatch.setenv('AUDIORANK_CHECKPOINT', str(path))
  encoder = utils.attr_from_py_path('audiorank/export/xares.py', 'Encoder')()
  assert checker.check_audio_encoder(encoder)
  assert encoder.hop_size_in_ms == 40 and encoder.output_dim == 32
  audio = torch.randn(2, 16_000).clamp(-1, 1)
  want, _ = encoders.ours(path).timestamps(audio.numpy())
  np.testing.assert_allclose(encoder(audio).numpy(), want, atol=1e-6)
  monkeypatch.delenv('AUDIORANK_CHECKPOINT')
  with pytest.raises(ValueError, match='set AUDIORANK_CHECKPOINT'):
    xares.encoder()
