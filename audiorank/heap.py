"""The allocator of a process that computes on the CPU.

XLA takes its temporaries anew at every step. glibc gives large ones back to
the kernel when they are freed, which then has every page to find and to zero
again: a quarter of a training step of en128-12 at batch 16. Keeping them takes
one heap for all threads, which small steps pay for with a seventh of their time
and large ones do not notice, and up to twice the memory: hence only where there
is plenty.
"""

import ctypes
import importlib.util
import json
import os
import pathlib

# mallopt's names for them in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
LARGE = 1e10  # FLOPs of a step from which it pays.
PLENTY = 8  # Times what the process holds that the machine must have.
# GLIBC_TUNABLES that have the same done in a process yet to be started.
TUNABLES = ('glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:'
            f'glibc.malloc.trim_threshold={2 ** 62}')


def work(config):
  """Returns about how many FLOPs a training step takes, from plain fields.

  Products of the blocks alone; `audiorank.compute` counts all, but has jax
  imported, which would be too late here.
  """
  m, d = config['model'], config['model']['decoder']
  tokens = (config['train']['batch'] * config['data']['crop_seconds'] * 100
            / m['patch_frames'])
  kept = 1 - config['mask']['ratio']
  return 72 * tokens * (kept * m['depth'] * m['width'] ** 2
                        + d['depth'] * d['width'] ** 2)


def is_large(workdir, config=None):
  """Returns whether the steps of a run are so large that keeping pays.

  Args:
    workdir: the run's folder.
    config: of the run, where its folder is not made yet.
  """
  try:
    text = pathlib.Path(workdir, 'config.json').read_text
    return work(config or json.loads(text())) >= LARGE
  except (OSError, ValueError, KeyError, TypeError):
    return False  # Whoever reads the config next says what is wrong with it.


def unite():
  """Has all threads of the process share one heap; returns whether they will.

  Call it before numpy and jax are imported: a thread that has a heap of its own
  keeps it, and only the first heap can hold large arrays. Nothing is done on
  other systems, nor where an accelerator's plugin is installed: there the
  arrays are not in this machine's memory and many threads share the heap.
  """
  if os.environ.get('JAX_PLATFORMS') != 'cpu' and any(
      importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu')):
    return False
  try:
    return bool(ctypes.CDLL(None).mallopt(_ARENA_MAX, 1))
  except (AttributeError, OSError, TypeError):
    return False


def keep():
  """Keeps what is freed from now on; returns whether it does.

  Call it after the first step of a process that could `unite`: what compiling
  left behind is given back first. Nothing is done where the process holds more
  than an eighth of the machine's memory.
  """
  libc = ctypes.CDLL(None)
  libc.malloc_trim(0)
  held = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  if PLENTY * held > os.sysconf('SC_PHYS_PAGES'):
    return False
  return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))
