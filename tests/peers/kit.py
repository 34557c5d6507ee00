"""Runs a command of the HEAR kits, unmodified, on today's Python and torch.

  python tests/peers/kit.py hearvalidator.validate audiorank.hear.api --model X
  python tests/peers/kit.py heareval.embeddings.runner audiorank.hear.api ...
  python tests/peers/kit.py heareval.predictions.runner embeddings/...
  python tests/peers/kit.py --versions

Three things stand in their way, none of them in the kits' own code:

  tensorflow     both import it, and use a few names to tell tensors apart; the
                 stand-in below answers them (a gigabyte less to install)
  Lightning      heareval sets FitLoop.current_epoch, which has had no setter
                 since 1.6 (hear-eval-kit issue 432)
  torch.load     reads weights alone since 2.6; Lightning's checkpoints, which
                 heareval has just written itself, hold more
"""

import importlib.machinery
import importlib.metadata
import os
import runpy
import sys
import types

PEERS = ('heareval', 'hearvalidator', 'dasheng', 'torch', 'torchaudio',
         'pytorch-lightning', 'numpy', 'jax', 'flax', 'audiorank')


def tensorflow():
  """Returns a module with what the kits and einops ask of tensorflow."""
  module = types.ModuleType('tensorflow')
  module.__spec__ = importlib.machinery.ModuleSpec('tensorflow', None)
  module.__version__ = '0'
  for name in ('Module', 'Tensor', 'Variable'):
    setattr(module, name, type(name, (), {}))
  module.float32 = 'float32'
  module.test = types.SimpleNamespace(is_gpu_available=lambda: False)
  return module


def prepare():
  """Makes the kits importable in this process."""
  # Flax looks for tensorflow when it is imported, and must not find this one.
  import flax.linen
  del flax
  sys.modules.setdefault('tensorflow', tensorflow())
  os.environ.setdefault('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


def settable_epoch():
  """Gives Lightning's FitLoop the setter of current_epoch."""
  from pytorch_lightning.loops import FitLoop

  def write(loop, epoch):
    # What Trainer.current_epoch reads.
    loop.epoch_progress.current.completed = epoch

  FitLoop.current_epoch = property(
      lambda loop: loop.epoch_progress.current.completed, write)


def main():
  if sys.argv[1:] == ['--versions']:
    for name in PEERS:
      print(name, importlib.metadata.version(name))
    return
  prepare()
  if sys.argv[1].startswith('heareval'):
    settable_epoch()
  sys.argv = sys.argv[1:]
  runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
