"""What is freed is kept, and only where it serves."""

import platform
import subprocess
import sys

import pytest

from audiorank import heap

FAULTS = '''
import resource, sys
from audiorank import heap
print(heap.keep() if sys.argv[1] == 'keep' else True)
import numpy as np
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
  before = faults()
  x = np.ones(25_000_000, np.float64)  # 200 MB.
  del x
print(faults() - before)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='not glibc')
@pytest.mark.parametrize('how', ['keep', 'leave'])
def test_memory_that_was_freed_needs_no_new_pages(how):
  said = subprocess.run(
      [sys.executable, '-c', FAULTS, how], capture_output=True, text=True,
      check=True, env={'JAX_PLATFORMS': 'cpu'}).stdout.split()
  assert said[0] == 'True'
  # 200 MB are 48,829 pages of 4 KiB, or 763 of 64.
  assert int(said[1]) < 100 if how == 'keep' else int(said[1]) >= 90


def test_an_accelerators_host_is_left_as_it_is(monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(heap.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(heap.ctypes, 'CDLL', None)  # Not to be reached.
  assert heap.keep() is False


def test_without_glibc_nothing_is_done(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setattr(heap.ctypes, 'CDLL', lambda _: object())
  assert heap.keep() is False
