"""What is exported, in the hands of the installed official package."""

import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import readme_code_test

import audiorank
from audiorank import embed
from audiorank import records
from audiorank.export import pytorch

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('torch', 'dasheng'))),
    reason='the package dasheng is not installed (tests/peers/install.sh)')
# The block of audiorank/dasheng/README.md, and what its models say.
ASK = """
import numpy as np, torch
wave_BS = torch.from_numpy(np.load('wave_BS.npy'))
with torch.no_grad():
  np.savez('said.npz', one=one(wave_BS).numpy(), same=same(wave_BS).numpy())
"""


def test_an_exported_model_is_theirs(tmp_path):
  _, block = readme_code_test.blocks('audiorank/dasheng/README.md')
  model = audiorank.load(records.SAMPLE / 'model')
  pytorch.save(tmp_path / 'one.pt', model.config, model.params)
  model.save_pretrained(tmp_path / 'released')
  # Two chunks and a part, one clip 60 dB below the other.
  rng = np.random.default_rng(0)
  samples = 160 * model.config.model.target_frames * 5 // 2
  wave_BS = (rng.normal(size=(2, samples)) * [[.1], [1e-4]]).astype(np.float32)
  np.save(tmp_path / 'wave_BS.npy', wave_BS)
  # A process that knows nothing of ours.
  done = subprocess.run(
      [sys.executable, '-c', block + ASK], cwd=tmp_path, text=True,
      capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
  assert done.returncode == 0, done.stderr
  want_BLD, _ = embed.timestamps(model.config, model.params, wave_BS,
                                 clamp='batch')
  with np.load(tmp_path / 'said.npz') as said:
    for name in ('one', 'same'):
      # As in the table of audiorank/dasheng: float32, summed otherwise.
      np.testing.assert_allclose(said[name], want_BLD, atol=5e-5)
  # And back, bit for bit.
  again = audiorank.load(tmp_path / 'one.pt')
  jax.tree.map(np.testing.assert_array_equal, again.params, {
      kind: {'encoder': tree['encoder']}
      for kind, tree in model.params.items()})
