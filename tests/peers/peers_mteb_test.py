"""MTEB evaluates our encoder as it is; its score is that of 'fewshot'.

  python -m venv mteb-venv
  mteb-venv/bin/pip install -e '.[mteb,test]'
  mteb-venv/bin/python -m pytest tests/peers/peers_mteb_test.py
"""

import json

import numpy as np
import pytest
import soundfile

from audiorank import encoders
from audiorank import evaluate
from audiorank.export import mteb as export
from audiorank.hear import probe
from audiorank.hear import tasks
from tests import evaluate_test

mteb = pytest.importorskip('mteb')
datasets = pytest.importorskip('datasets')
pytestmark = pytest.mark.filterwarnings('ignore')
RATE, LABELS, COUNT = 16_000, 3, {'train': 60, 'test': 45}


def clips(split):
  """Returns (waves, labels): noise of three loudnesses."""
  rng = np.random.default_rng(len(split))
  y_N = np.arange(COUNT[split]) % LABELS
  return [(.02 * 2. ** y * rng.uniform(.6, 1.4) * rng.standard_normal(
      RATE // 4 + 400 * int(rng.integers(4)))).clip(-1, 1).astype(np.float32)
          for y in y_N], y_N


def fake_task():
  """Returns a classification task of MTEB with these clips, without network."""
  from mteb.abstasks import AbsTaskClassification
  from mteb.abstasks.task_metadata import TaskMetadata

  class Loudness(AbsTaskClassification):
    metadata = TaskMetadata(
        name='Loudness', description='loudness of noise', type=
        'AudioClassification', category='a2c', eval_splits=['test'],
        eval_langs=['eng-Latn'], main_score='accuracy', modalities=['audio'],
        dataset={'path': 'audiorank/none', 'revision': '1'},
        reference=None, date=None, domains=None, task_subtypes=None,
        license=None, annotations_creators=None, dialect=None,
        sample_creation=None, bibtex_citation=None)
    input_column_name = 'audio'

    def load_data(self, **_):
      self.dataset = datasets.DatasetDict({
          split: datasets.Dataset.from_dict({
              'audio': [{'array': w.tolist(), 'sampling_rate': RATE}
                        for w in clips(split)[0]],
              'label': clips(split)[1].tolist()}) for split in COUNT})
      self.data_loaded = True

  return Loudness()


def our_task(root):
  """Writes the same clips as a HEAR task; returns its folder."""
  folder = root / 'loudness-v1-full'
  for split in COUNT:
    (folder / str(RATE) / split).mkdir(parents=True)
    labels = {}
    for i, (wave_S, y) in enumerate(zip(*clips(split))):
      soundfile.write(folder / str(RATE) / split / f'{i:03d}.wav', wave_S, RATE,
                      subtype='FLOAT')
      labels[f'{i:03d}.wav'] = [str(y)]
    (folder / f'{split}.json').write_text(json.dumps(labels))
  (folder / 'valid.json').write_text((folder / 'test.json').read_text())
  (folder / str(RATE) / 'valid').symlink_to(folder / str(RATE) / 'test')
  (folder / 'labelvocabulary.csv').write_text(
      'idx,label\n' + ''.join(f'{i},{i}\n' for i in range(LABELS)))
  (folder / 'task_metadata.json').write_text(json.dumps({
      'task_name': 'loudness', 'version': 'v1', 'embedding_type': 'scene',
      'prediction_type': 'multiclass', 'split_mode': 'trainvaltest',
      'splits': ['train', 'valid', 'test'], 'sample_duration': None,
      'evaluation': ['top1_acc']}))
  return folder


def test_mteb_scores_our_encoder(tmp_path):
  path = evaluate_test.write_weights(tmp_path / 'one.safetensors')
  model = export.encoder(str(path))
  result = mteb.evaluate(model, fake_task(), cache=None, co2_tracker=False)
  score = result[0].scores['test'][0]
  one = encoders.ours(path)
  assert model.mteb_model_meta.embed_dim == one.width
  assert model.mteb_model_meta.revision == one.about['weights']
  waves = clips('test')[0]
  batches = [{'audio': [{'array': w, 'sampling_rate': RATE} for w in part]}
             for part in (waves[:20], waves[20:])]
  np.testing.assert_allclose(model.encode(batches), one.scene(waves), atol=1e-5)
  # The same draws, labels and classifier as our 'fewshot', if its clips come
  # in MTEB's order.
  ours = evaluate.score(one, our_task(tmp_path), {'protocol': 'fewshot'})
  assert score['main_score'] == pytest.approx(ours['result']['score'], abs=.08)
  assert score['main_score'] > .4


def test_draws_and_predictions_are_those_of_mteb(tmp_path):
  path = evaluate_test.write_weights(tmp_path / 'one.safetensors')
  result = mteb.evaluate(export.encoder(str(path)), fake_task(), cache=None,
                         co2_tracker=False)
  one, task = encoders.ours(path), tasks.load(our_task(tmp_path))
  # In the order of MTEB's data set, not of hear-eval-kit.
  order = {split: tuple(f'{i:03d}.wav' for i in range(COUNT[split]))
           for split in COUNT}
  order['valid'] = order['test']
  split_of = {'train': 'train', 'valid': 'test', 'test': 'test'}
  task = task._replace(files=order, targets={
      s: np.eye(LABELS, dtype=np.uint8)[clips(split_of[s])[1]] for s in order})
  z = {s: one.scene(clips(split_of[s])[0]) for s in order}
  ours = probe.evaluate(task, z, protocol='fewshot')
  assert result[0].scores['test'][0]['main_score'] == pytest.approx(
      ours['score'], abs=1e-9)
