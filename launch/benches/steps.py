"""Training steps, ours and the official trainer's, timed in a process each.

  python -m launch.benches.steps JOB

JOB is JSON: a `Case` with the side to time. A process for each side of each
case, so that one that hangs or runs out of memory can be stopped and takes
nothing with it. Processes compile beside each other and time one at a time, by
a lock. The last line of output is JSON.

Shapes: B batch, S samples, K runs of one program.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import sys
import time
from typing import Any
from typing import NamedTuple

import numpy as np

WINDOW = 1.5  # Seconds that a window of steps takes at least, on a card.
WINDOWS = 3


class Case(NamedTuple):
  """One training step."""
  size: str
  decoder: tuple[int, int, int] = (512, 8, 16)  # Width, depth, heads.
  batch: int = 256
  seconds: float = 10.  # Of a crop.
  dtype: str = 'bfloat16'
  unroll: int = 0  # As model.unroll.
  runs: int = 1  # K, packed in one program.

  @property
  def name(self) -> str:
    width, depth, _ = self.decoder
    parts = [self.size, f'decoder {width}-{depth}', f'B {self.batch}']
    if self.runs > 1:
      parts.append(f'{self.runs} packed')
    parts.append(self.dtype)
    if self.unroll == 1:
      parts.append('blocks in a loop')
    return ', '.join(parts)


def config_of(case: Case) -> Any:
  """Returns the frozen config of a case."""
  from audiorank import records
  from configs import base
  c = base.get_config(case.size)
  c.model.decoder.update(dict(zip(('width', 'depth', 'heads'), case.decoder)))
  c.model.dtype, c.model.unroll = case.dtype, case.unroll
  c.data.crop_seconds = case.seconds
  c.train.batch = case.batch
  # The rival does not clip.
  c.opt.clip = 0.
  c.mesh.data = 1
  return records.frozen(c)


def waves(case: Case) -> np.ndarray:
  """Returns wave_BS int16, noise."""
  samples = int(round(case.seconds * 16_000))
  return np.random.default_rng(0).integers(
      -8000, 8000, (case.batch, samples), np.int16)


def ours(case: Case) -> tuple[Callable[[], Any], float]:
  """Returns (a function that starts one step, seconds of compiling it).

  The arrays that the function returns are ready when the step is done.
  """
  import jax

  from audiorank import sharding
  from audiorank import train_state
  config, mesh = config_of(case), sharding.mesh(1, 1)
  h = train_state.make_hparams(config)
  with jax.set_mesh(mesh):
    programs = train_state.programs(config, mesh)
    state, step = programs.init(h), programs.step
    if case.runs > 1:
      # K copies: only the time of a step is measured, not what it learns.
      state, h = (jax.tree.map(lambda x: np.stack([x] * case.runs), tree)
                  for tree in (jax.device_get(state), h))
      state = jax.device_put(state)
      one = train_state.train_step(train_state.static_config(config))
      # State and hyperparameters of each run, and the clips that all share.
      # The donated state is updated in place, as in training.
      step = jax.jit(jax.vmap(one, (0, None, 0)), donate_argnums=0)
    wave_BS = jax.device_put(waves(case), sharding.rows(mesh))
    began = time.perf_counter()
    # Compiled apart, so that compilation is measured by itself.
    step = step.lower(state, wave_BS, h).compile()
    compiling = time.perf_counter() - began
  # A list, because the step donates the state before it.
  states = [state]

  def run() -> Any:
    states[0], metrics = step(states[0], wave_BS, h)
    return metrics

  return run, compiling


def rival(case: Case, how: str = '', device: str = 'cpu'
          ) -> Callable[[], Any]:
  """Returns a function that takes one step of the package dasheng.

  Args:
    case: its dtype bfloat16 means torch's autocast.
    how: '' as published, 'sdpa' with torch's fused attention, 'compiled' also
      with torch.compile.
    device: 'cpu' or 'cuda'.

  Raises:
    ImportError, OSError: no dasheng, or no torch.
  """
  from dasheng.train import models
  import torch
  config = config_of(case)
  m, d = config.model, config.model.decoder
  encoder = models.AudioTransformerMAE_Encoder(
      embed_dim=m.width, depth=m.depth, num_heads=m.heads,
      target_length=m.target_frames, patch_size=[64, 4],
      patch_stride=[64, 4])
  decoder = models.AudioTransformerMAE_Decoder(
      input_dim=m.width, outputdim=256, embed_dim=d.width, depth=d.depth,
      num_heads=d.heads, num_patches=encoder.patch_embed.num_patches)
  if how:
    # The published code computes the N x N attention in full.
    models.Attention.forward = fused_attention
  net = models.AudioTransformerMAE(encoder, decoder).train().to(device)
  # fused: one kernel for all parameters, on a card.
  adam = torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=.01,
                           fused=device == 'cuda')
  forward = net
  if how == 'compiled':
    forward = torch.compile(net)
  # On the device from the start: loading is timed on neither side.
  wave = torch.from_numpy(waves(case).astype(np.float32) / 32768).to(device)
  # torch's counterpart of computing in bfloat16.
  half = torch.autocast(device, torch.bfloat16,
                        enabled=case.dtype == 'bfloat16')

  def run() -> Any:
    adam.zero_grad(set_to_none=True)
    with half:
      loss = forward(wave, mask_ratio=config.mask.ratio, return_loss=True)
    # Outside autocast, as torch advises for backward passes.
    loss.backward()
    adam.step()

  return run


def fused_attention(self: Any, x: Any, mask: Any = None) -> Any:
  """The published Attention in training, with torch's fused kernel."""
  import torch
  B, N, C = x.shape
  q, k, v = self.qkv(x).reshape(
      B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
  o = torch.nn.functional.scaled_dot_product_attention(q, k, v)
  return self.proj(o.transpose(1, 2).reshape(B, N, C))


@contextlib.contextmanager
def alone(lock: str) -> Iterator[None]:
  """Waits until no other process measures time, and then blocks the others."""
  with open(lock, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def measure(run: Callable[[], Any], wait: Callable[[Any], Any],
            window: float = WINDOW) -> float:
  """Returns the seconds of a step, from the fastest of several windows.

  Args:
    run: starts a step.
    wait: waits for its result.
    window: seconds.
  """
  # The fastest, because another process may compile at the same time, and try
  # kernels on the same card.
  for _ in range(3):
    result = run()
  wait(result)
  steps, windows = 1, []
  while len(windows) < WINDOWS:
    began = time.perf_counter()
    for _ in range(steps):
      result = run()
    wait(result)
    seconds = time.perf_counter() - began
    if seconds < .5 * window:
      steps *= 2  # Too short to tell a step from its launch.
    else:
      windows.append(seconds / steps)
  return min(windows)


def time_ours(case: Case, lock: str, window: float) -> dict[str, Any]:
  """Returns seconds of a step, of compiling it, and GB of memory."""
  import jax
  run, compiling = ours(case)
  with alone(lock):
    seconds = measure(run, jax.block_until_ready, window)
  device = jax.devices()[0]
  memory = device.memory_stats() or {}
  return {'seconds': seconds, 'compiling': compiling,
          'device': device.device_kind,
          'memory': memory.get('peak_bytes_in_use', 0) / 1e9}


def time_rival(case: Case, how: str, lock: str, window: float
               ) -> dict[str, Any]:
  """Returns seconds of a step of the official trainer."""
  import torch
  device, wait = 'cpu', lambda _: None
  if torch.cuda.is_available():
    device, wait = 'cuda', lambda _: torch.cuda.synchronize()
  # TF32 for products that stay in float32.
  torch.set_float32_matmul_precision('high')
  run = rival(case, how, device)
  if how == 'compiled':
    run()  # Compiles, while others may use the card.
  with alone(lock):
    seconds = measure(run, wait, window)
  return {'seconds': seconds}


def main(argv: list[str]) -> None:
  """Runs one job of `train`, given as JSON; prints its result as JSON."""
  job = json.loads(argv[1])
  fields = dict(job['case'])
  case = Case(**{**fields, 'decoder': tuple(fields['decoder'])})
  if job['side'] == 'ours':
    result = time_ours(case, job['lock'], job['window'])
  else:
    result = time_rival(case, job['how'], job['lock'], job['window'])
  print(json.dumps(result), flush=True)
  # A compiler's threads may outlive the work; nothing else is to be closed.
  sys.stdout.flush()
  os._exit(0)


if __name__ == '__main__':
  main(sys.argv)
