"""The smallest run that trains, reads its rank and is saved on the way."""

import jax
from jax.experimental.compilation_cache import compilation_cache

from configs import base


def shape():
  """Returns a mutable config of the smallest network there is."""
  c = base.get_config('en32-2')
  c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
  c.model.target_frames = 104
  c.data.crop_seconds = .5
  return c


def config(corpus, **changes):
  """Returns a mutable config of six steps on one device.

  Args:
    corpus: folder of a prepared corpus.
    **changes: {flat field: value}.
  """
  c = shape()
  c.data.update({'root': str(corpus), 'valid_fraction': .2, 'threads': 1})
  c.train.update({'steps': 6, 'batch': 8, 'log_every': 2})
  c.opt.update({'lr': 1e-3, 'warmup': 2})
  c.monitor.update({'clips': 48, 'crop_seconds': .5, 'num_evals': 3,
                    'first_eval': 2, 'batch': 8, 'valid_clips': 8})
  c.checkpoint.update({'save_every': 2, 'keep_every': 100})
  c.mesh.data = 1
  # Locked, so that a field that does not exist is an error.
  c.lock().update_from_flattened_dict(changes)
  return c


def compiled_once(folder):
  """Keeps what is compiled in a folder until it is resumed: a generator for
  the fixture of a module that trains the same run again and again."""
  changes = {'jax_compilation_cache_dir': str(folder),
             'jax_persistent_cache_min_compile_time_secs': 0.,
             'jax_persistent_cache_min_entry_size_bytes': -1}
  before = {name: getattr(jax.config, name) for name in changes}
  for values in (changes, before):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if values is changes:
      yield
