"""The allocator of a process that computes on the CPU.

XLA takes its temporaries anew at every step. glibc gives large ones back to
the kernel when they are freed, which then has every page to find and to zero
again: a quarter of a training step of en128-12 at batch 16.
"""

import ctypes
import importlib.util
import os

# mallopt's names for them in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
LARGE = 1e10  # FLOPs of a step from which it pays.


def keep():
  """Has glibc keep what is freed; returns whether it will.

  Call it before jax starts its backend: a thread that has a heap of its own
  keeps it, and only the first heap can hold large arrays. The process then
  never holds less memory than at its largest step. Nothing is done on other
  systems, nor where an accelerator's plugin is installed: there the arrays are
  not in this machine's memory and many threads share the heap.
  """
  if os.environ.get('JAX_PLATFORMS') != 'cpu' and any(
      importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu')):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0),
              mallopt(_TRIM_THRESHOLD, -1)])
