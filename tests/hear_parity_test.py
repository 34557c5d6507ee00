"""A folder that hear-eval-kit left is read without its pickles."""

import json

import numpy as np
import pytest

from audiorank.hear import parity
from audiorank.hear import probe


def leave(folder, shared, name):
  """What the kit leaves of the fixture's run `name`."""
  root = shared / 'fixtures/hear'
  run = json.loads((root / 'official_runs.json').read_text())[name]
  folder.mkdir()
  (folder / 'task_metadata.json').write_text(json.dumps(run['metadata']))
  (folder / 'labelvocabulary.csv').write_text(run['labelvocabulary'])
  (folder / 'test.predicted-scores.json').write_text(json.dumps(run['scores']))
  with np.load(root / 'official_runs.npz') as arrays:
    for split in run['metadata']['splits']:
      z_ND = arrays[f'{name}/{split}/emb']
      z_ND.astype('<f4').tofile(folder / f'{split}.embeddings.npy')
      (folder / f'{split}.embedding-dimensions.json').write_text(
          json.dumps(z_ND.shape))
      (folder / f'{split}.json').write_text(json.dumps(run['splits'][split]))
      if 'filename_timestamps' in run:
        (folder / f'{split}.filename-timestamps.json').write_text(
            json.dumps(run['filename_timestamps'][split]))
  return folder, run


def test_scene_run(shared, tmp_path):
  folder, run = leave(tmp_path / 'toyml', shared, 'toyml')
  task, embeddings, kit = parity.load(folder)
  assert kit == run['scores']['aggregated_scores']['test_score_mean']
  with np.load(shared / 'fixtures/hear/official_runs.npz') as arrays:
    for split in task.splits:
      np.testing.assert_array_equal(embeddings[split],
                                    arrays[f'toyml/{split}/emb'])
  # The embeddings' order is the labels' order: they can be learned.
  assert probe.logistic(task, embeddings)['score'] > .8


def test_event_run(shared, tmp_path):
  folder, run = leave(tmp_path / 'toyev', shared, 'toyev')
  task, embeddings, kit = parity.load(folder)
  assert kit == run['scores']['test']['test_score']
  assert {f for files in task.files.values() for f in files} == set(embeddings)
  z_LD, ms_L = embeddings[task.files['test'][0]]
  assert z_LD.shape == (100, 128) and ms_L[:3].tolist() == [20, 60, 100]


def test_cut_short(shared, tmp_path):
  folder, _ = leave(tmp_path / 'toymc', shared, 'toymc')
  (folder / 'test.embeddings.npy').write_bytes(bytes(16))
  with pytest.raises(ValueError, match='4 numbers, expected'):
    parity.load(folder)
