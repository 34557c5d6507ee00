"""Scaling laws for audio representations, by the rank of embeddings.

  model = audiorank.load('runs/one')      a run, an official file, a hub id
  z_ND = model.embed(waves_or_files)
  encoder = audiorank.encoder('hf:NAME')  any encoder, those above too
  audiorank.rankme.estimate(z_ND)         RankMe with its interval
  audiorank.scores(model, 'tasks')        HEAR tasks, a row a score
  audiorank.fit('runs/quickstart')        the law from rank to score

Importing this costs nothing: numpy, jax and the rest come with the first use.
Every module is reached in the same way: audiorank.figures, audiorank.records.
"""

TYPE_CHECKING = False  # Without the cost of importing typing.

__all__ = ['Model', 'encoder', 'fit', 'load', 'rankme', 'scores']

if TYPE_CHECKING:
  from audiorank import figures as figures
  from audiorank import laws as laws
  from audiorank import rankme as rankme
  from audiorank import records as records
  from audiorank.api import encoder as encoder
  from audiorank.api import fit as fit
  from audiorank.api import load as load
  from audiorank.api import Model as Model
  from audiorank.evaluate import scores as scores
else:
  def __getattr__(name):
    import importlib.util
    if name in ('Model', 'encoder', 'fit', 'load'):
      return getattr(importlib.import_module('audiorank.api'), name)
    if name == 'scores':
      return importlib.import_module('audiorank.evaluate').scores
    if not name.startswith('_') and importlib.util.find_spec(
        f'audiorank.{name}'):
      return importlib.import_module(f'audiorank.{name}')
    raise AttributeError(f'audiorank has no {name!r}: it offers '
                         f'{", ".join(__all__)} and its modules')


def __dir__():
  return sorted({*globals(), *__all__})
