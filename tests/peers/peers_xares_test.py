"""X-ARES runs our encoder on tars; its kNN score is that of 'xares_knn'.

In an environment with torch and the extra `test`:

  pip install --no-deps xares loguru webdataset braceexpand pytorch-ignite \\
      jiwer rapidfuzz torchaudio==2.11.0
  python -m pytest tests/peers/peers_xares_test.py
"""

import io

import numpy as np
import pytest
import soundfile

from audiorank import encoders
from audiorank import evaluate
from audiorank.hear import tars
from tests import evaluate_test
from tests import tars_test

torch = pytest.importorskip('torch')
torchaudio = pytest.importorskip('torchaudio')
task_lib = pytest.importorskip('xares.task')
pytestmark = pytest.mark.filterwarnings('ignore')
RATE, LABELS = 16_000, ('low', 'middle', 'high')
# Two crops and a remainder, one crop, and less than a crop.
SECONDS = (2.3, 1., .6)


def clips(count, seed):
  """Returns {name: content} of a tar: noise of three spectra."""
  rng, out = np.random.default_rng(seed), {}
  for i in range(count):
    y = int(rng.integers(3))
    x_S = rng.standard_normal(int(SECONDS[i % 3] * RATE))
    # A mean over y + 1 samples takes away the high frequencies.
    x_S = np.convolve(x_S, np.ones(y + 1) / (y + 1), 'same')
    buffer = io.BytesIO()
    soundfile.write(buffer, .1 * x_S, RATE, format='WAV', subtype='PCM_16')
    out[f'clip{seed}_{i:03d}.wav'] = buffer.getvalue()
    out[f'clip{seed}_{i:03d}.json'] = {'label': LABELS[y]}
  return out


def test_neighbours_of_crops_score_as_in_xares(tmp_path, monkeypatch):
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path / 'cache'))
  # Its wheel decodes by libraries that a CPU machine may lack.
  monkeypatch.setattr(torchaudio, 'load', lambda file, *_, **__: (
      lambda x, rate: (torch.from_numpy(x.T), rate))(*soundfile.read(
          file, dtype='float32', always_2d=True)))
  monkeypatch.setitem(tars.CROPS, 'voxceleb1', 1)
  folder = tmp_path / 'env' / 'voxceleb1'
  for seed, (split, count) in enumerate((('train', 60), ('valid', 15),
                                         ('test', 40))):
    tars_test.write_tar(folder / f'{split}_0000.tar', clips(count, seed))
  (folder / '.audio_tar_ready').touch()
  path = evaluate_test.write_weights(tmp_path / 'one.safetensors')
  monkeypatch.setenv('AUDIORANK_CHECKPOINT', str(path))
  utils = pytest.importorskip('xares.utils')
  config = task_lib.TaskConfig(
      name='voxceleb1', env_root=tmp_path / 'env', output_dim=3, crop_length=1,
      num_encoder_workers=0, eval_weight=2000,
      encoder=utils.attr_from_py_path('audiorank/export/xares.py', 'Encoder')(),
      label_processor=lambda about: LABELS.index(about['label']))
  config.audio_tar_name_of_split = {
      split: f'{split}_0*.tar' for split in ('train', 'valid', 'test')}
  task = task_lib.XaresTask(config)
  task.make_encoded_tar()
  task.ckpt_dir.mkdir(parents=True)
  theirs, weight = task.run_knn()
  ((name, unpacked),) = evaluate.task_paths(tmp_path / 'env').items()
  ours = evaluate.score(encoders.ours(path), unpacked,
                        {'protocol': 'xares_knn'})
  assert ours['weight'] == weight == 2000 and name == 'voxceleb1'
  # One crop of each clip, and those that begin a batch of 16: the crops 16 and
  # 48 are the first ones of their clips, 32 is the first one too.
  assert 40 <= ours['result']['clips'] <= 43
  assert ours['result']['score'] == pytest.approx(theirs, abs=1e-6)
  assert theirs > .4
