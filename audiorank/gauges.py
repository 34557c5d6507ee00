"""How fast a run goes: clips, FLOPs and their share of the chip, waiting.

Times of readings and saves are left out, and so is the first row of a
process, which compiles.
"""

import contextlib
import resource
import sys
import time

from absl import logging
import jax

from audiorank import flops as flops_lib

MUCH = .05  # Of the time, waited for input: more deserves a warning,
LONG = 1.   # if it is more than so many seconds.


class Gauge:
  """Counts what passes between two rows of metrics.jsonl.

  Args:
    what: the run, for warnings.
    batch: clips of a step.
    flops: of one clip, {'encoder': ..., 'total': ...}; flops.step_flops.
    devices: how many share the work.
    step: the first.
  """

  def __init__(self, what, batch, flops, devices, step):
    self.what, self.batch, self.flops = what, batch, flops
    self.peak = flops_lib.peak(jax.devices()[0].device_kind)
    self.devices, self.step = devices, step
    self.began, self.apart, self.waited = time.monotonic(), 0., 0.
    self.warm, self.warned = False, False

  @contextlib.contextmanager
  def aside(self):
    """What happens within is no part of training."""
    began = time.monotonic()
    yield
    self.apart += time.monotonic() - began

  @contextlib.contextmanager
  def waiting(self):
    """What happens within is waiting for input."""
    began = time.monotonic()
    yield
    self.waited += time.monotonic() - began

  def row(self, step):
    """Returns what happened since the row before, and starts anew.

    waiting: seconds for input. clips_per_second. tflops: 1e12 FLOPs a second
    by our own count, encoder and decoder; encoder_tflops: the encoder's. mfu:
    their share of what the chips can do in bfloat16; None where the chip is
    not known. The last four are None in a process's first row.
    """
    now = time.monotonic()
    spent = max(now - self.began - self.apart, 1e-9)
    clips = (step - self.step) * self.batch / spent
    rates = {'clips_per_second': clips,
             'tflops': clips * self.flops['total'] / 1e12,
             'encoder_tflops': clips * self.flops['encoder'] / 1e12}
    rates['mfu'] = (rates['tflops'] * 1e12 / (self.peak * self.devices)
                    if self.peak else None)
    share = self.waited / spent
    if (self.warm and share > MUCH and self.waited > LONG and
        not self.warned):
      self.warned = True
      logging.warning(
          '%s: waited for input %.0f %% of the time up to step %d; raise '
          'data.threads, or keep the audio in memory by data.resident',
          self.what, 100 * share, step)
    out = {'waiting': self.waited,
           **(rates if self.warm else dict.fromkeys(rates))}
    self.began, self.apart, self.waited = now, 0., 0.
    self.step, self.warm = step, True
    return out


def memory():
  """Returns the most bytes held so far, {'host': ..., 'device': ...}.

  device is that of the fullest one, None where it does not tell (CPU).
  """
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  held = [d.memory_stats() for d in jax.local_devices()]
  return {'host': most if sys.platform == 'darwin' else most * 1024,
          'device': max((h['peak_bytes_in_use'] for h in held
                         if h and 'peak_bytes_in_use' in h), default=None)}
