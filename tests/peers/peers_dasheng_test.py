"""The installed official Dasheng and ours give the same tokens."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('torch', 'dasheng'))),
    reason='the package dasheng is not installed (tests/peers/install.sh)')
@pytest.mark.parametrize('size', [
    (96, 3, 6, 200), (64, 2, 2, 1008), (128, 1, 8, 80)])
def test_weights_both_ways_and_the_same_tokens(size):
  names = ('width', 'depth', 'heads', 'target_length')
  done = subprocess.run(
      [sys.executable, '-m', 'audiorank.dasheng.parity', '--peer',
       *(f'--{name}={value}' for name, value in zip(names, size))], cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True,
      text=True, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'chunks: tokens with x_length' in done.stdout
  assert '**off**' not in done.stdout
