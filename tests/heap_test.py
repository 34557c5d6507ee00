"""What is freed is kept, and only where it serves."""

import platform
import subprocess
import sys

import pytest

from audiorank import heap
from audiorank import program
from audiorank import records
from configs import base

FAULTS = '''
import resource, sys
from audiorank import heap
if sys.argv[1] == 'keep':
  assert heap.unite()
import numpy as np
if sys.argv[1] == 'keep':
  assert heap.keep()
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
      check=True, env={'JAX_PLATFORMS': 'cpu'}).stdout
  # 200 MB are 48,829 pages of 4 KiB, or 96 of 2 MiB.
  assert int(said) < 50 if how == 'keep' else int(said) >= 90


def test_an_accelerators_host_is_left_as_it_is(monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(heap.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(heap.ctypes, 'CDLL', None)  # Not to be reached.
  assert heap.unite() is False


def test_nothing_is_kept_where_memory_is_short(monkeypatch):
  class Libc:
    malloc_trim = staticmethod(lambda _: 0)
  monkeypatch.setattr(heap.ctypes, 'CDLL', lambda _: Libc)
  monkeypatch.setattr(heap.os, 'sysconf', lambda _: 1000)
  monkeypatch.setattr(heap.pathlib.Path, 'read_text', lambda _: '900 126 9')
  assert heap.keep() is False  # Without mallopt, which is not to be called.


def test_without_glibc_nothing_is_done(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setattr(heap.ctypes, 'CDLL', lambda _: object())
  assert heap.unite() is False


@pytest.mark.parametrize('point', ['en64-4', 'en128-12', 'en768-12'])
def test_work_is_what_is_counted_elsewhere(point):
  c = base.get_config(point)
  counted = program.flops(records.frozen(c))['total'] * c.train.batch
  # Attention's own products and the ends of the network are left out.
  assert heap.work(c) == pytest.approx(counted, rel=.25)


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"model": 1}'])
def test_a_folder_that_says_nothing_is_left_to_who_reads_it(tmp_path, text):
  assert heap.is_large(tmp_path / 'none') is False
  (tmp_path / 'config.json').write_text(text)
  assert heap.is_large(tmp_path) is False


def test_a_run_s_own_config_says_whether_it_is_large(tmp_path):
  small, large = base.get_config('en16-2'), base.get_config('en768-12')
  small.train.batch = 1
  small.model.decoder.update({'width': 16, 'depth': 1, 'heads': 1})
  records.open_run(tmp_path, large)
  assert heap.is_large(tmp_path) and heap.is_large('none', large)
  assert not heap.is_large('none', small)
