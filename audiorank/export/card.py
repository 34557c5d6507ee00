"""The model card, written from a run's records."""

from collections.abc import Iterable
from collections.abc import Sequence
import math
import pathlib
from typing import Any

from audiorank import checkpoint
from audiorank import files
from audiorank import flops
from audiorank import records
from audiorank.analysis import law
from audiorank.analysis import study
from audiorank.export import pretrained
from audiorank.report import numbers
from audiorank.report import wording

# The hub reads the kind of the model from this YAML.
HEAD = '''---
library_name: audiorank
pipeline_tag: feature-extraction
tags: [audio, audio-representation, masked-autoencoder, dasheng, jax]
---
'''
USE = '''## Use

```python
import audiorank

model = audiorank.load('THIS_FOLDER_OR_ID')
z_ND = model.embed(['a.wav', 'b.flac'])      # one embedding per clip
z_LD, ms_L = model.timestamps('a.wav')       # one per 40 ms
```

Input is mono at 16 kHz (files are resampled). An embedding is the mean over
time of the tokens after the last norm. The tensors have the names of the
official PyTorch Dasheng, which can load them.
'''


def write(config: Any, params: pretrained.Params, about: dict[str, Any],
          sweep: files.Path | None = None) -> str:
  """Returns the card of a model as Markdown.

  Args:
    config: the run's config, or its `model` part.
    params: the linen variables that are released.
    about: from encoders.weights; {} for a model without records.
    sweep: folder of the sweep with the law; None takes the run's parent folder
      if that is a sweep.
  """
  m = getattr(config, 'model', config)
  count = flops.parameters(params['params'])
  heads = f'{m.heads} heads'
  if m.heads == 1:
    heads = '1 head'
  lines = [HEAD, f'# audiorank {size(m)}\n',
           'A masked autoencoder of log-mel patches after Dasheng (arXiv '
           f'2406.06992): width {m.width}, depth {m.depth}, {heads}, '
           f'{count:,} parameters as released, positions for '
           f'{m.target_frames / 100:g} s; longer clips are cut into chunks.\n',
           USE]
  workdir = run_of(about)
  if workdir is None:
    return '\n'.join([*lines, '## Training\n', 'These weights come without '
                      'the records of their training.\n'])
  step = about['step']
  tables = None
  if sweep:
    tables = records.tables(files.path(sweep))
  elif (workdir.parent / 'sweep.json').is_file():
    tables = records.tables(workdir.parent)
  return '\n'.join([*lines, *training(config, workdir, step),
                    *rank(workdir, step), *scores(workdir, step, tables),
                    *prediction(workdir, step, tables)])


def size(model: Any) -> str:
  """Returns 'en<width>-<depth>'."""
  return f'en{model.width}-{model.depth}'


def run_of(about: dict[str, Any]) -> pathlib.Path | None:
  """Returns the folder of the run of a checkpoint, or None."""
  # Weights of others have no run, and so no records.
  if about.get('kind') != 'audiorank':
    return None
  folder, _ = checkpoint.find(about['checkpoint'])
  if (folder.parent / 'config.json').is_file():
    return folder.parent
  return None


def table(rows: Iterable[Sequence[Any]], head: Sequence[str]) -> list[str]:
  """Returns the lines of a Markdown table."""
  return [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}',
          *(f'| {" | ".join(map(str, row))} |' for row in rows), '']


def training(config: Any, workdir: pathlib.Path, step: int) -> list[str]:
  """Returns the lines on data and training."""
  about = records.read(workdir, 'run')
  hours = corpus = numbers.DASH
  if about:
    hours = numbers.number(about[-1]['hours'], '{:.3g} h')
    corpus = about[-1]['corpus'][:12]
  # With repetitions: a clip counts whenever it is drawn.
  clips = step * config.train.batch
  rows = [
      ('run', workdir.name), ('objective', config.objective),
      ('audio', f'{hours} (corpus {corpus})'),
      ('steps', f'{step} of {config.train.steps}'),
      ('clips seen', f'{clips:,} of {config.data.crop_seconds:g} s'),
      ('masking rate', f'{config.mask.ratio:g}'),
      ('peak learning rate', f'{config.opt.lr:g}'), ('seed', config.seed)]
  if about:
    per_clip = about[-1]['flops_per_clip']
    rows.append(('training FLOP', f"{per_clip['total'] * clips:.2e} with the "
                 f"decoder, {per_clip['encoder'] * clips:.2e} without"))
  return ['## Training\n', *table(rows, ('', ''))]


def rank(workdir: pathlib.Path, step: int) -> list[str]:
  """Returns the lines on effective rank, also of the untrained network."""
  by_step = {r['step']: r for r in records.read(workdir, 'monitor')}
  # RankMe is not measured at every checkpoint.
  if step not in by_step:
    return []
  rows = []
  # Step 0 is there only if the untrained network was measured.
  for at in sorted({0, step} & set(by_step)):
    when = f'step {at}'
    if at == 0:
      when = 'untrained'
    for name, text in (('rank', 'RankMe'), ('rank_center', 'centred')):
      value = by_step[at][name]
      rows.append((f'{text}, {when}', numbers.number(value['value'], '{:.2f}'),
                   f"{numbers.number(value['low'], '{:.2f}')} to "
                   f"{numbers.number(value['high'], '{:.2f}')}"))
  r = by_step[step]
  return ['## Effective rank, without labels\n',
          *table(rows, ('', 'value', '95 %')),
          f"Of {r['n']} clips of {r['sources']} recordings, width "
          f"{r['width']}, {r['layer']} layer, eps {r['rank']['eps']:g}; "
          'RankMe is uncentred (arXiv 2210.02885).\n']


def scores(workdir: pathlib.Path, step: int,
           tables: records.Tables | None) -> list[str]:
  """Returns the lines on HEAR tasks, also of the untrained network.

  Args:
    workdir: of the run.
    step: of the checkpoint.
    tables: of the run's sweep, if it has one.
  """
  own = [r for r in records.read(workdir) if r['kind'].startswith('hear.')
         and r['step'] == step]
  if not own:
    return []
  base = untrained(workdir, tables)
  rows = [(r['task'], r['metric'], numbers.number(r['result']['score']),
           numbers.number(base.get(r['task'])), r['result']['protocol'])
          for r in own]
  words = 'The untrained network was not scored.'
  if base:
    words = 'Untrained: the same network before training.'
  return ['## Scores\n', *table(rows, ('task', 'measure', 'test score',
                                       'untrained', 'predictor')),
          f'{words}\n']


def untrained(workdir: pathlib.Path,
              tables: records.Tables | None) -> dict[str, float]:
  """Returns {task: score} of the run's untrained baseline in its sweep."""
  if tables is None or not len(tables.tasks):
    return {}
  mine = tables.runs[tables.runs['run_id'] == workdir.name]
  if not len(mine):
    return {}
  same = tables.tasks[tables.tasks['run_id'] == mine.iloc[0]['baseline']]
  return dict(zip(same['task'], same['score']))


def prediction(workdir: pathlib.Path, step: int,
               tables: records.Tables | None) -> list[str]:
  """Returns the lines on the prediction for this run by its sweep's law.

  Args:
    workdir: of the run.
    step: of the checkpoint; only the last one is predicted.
    tables: of the run's sweep, if it has one.
  """
  title = '## Prediction by the law of its sweep\n'
  if tables is None:
    return []
  mine = tables.runs[tables.runs['run_id'] == workdir.name]
  if not len(mine) or step != mine.iloc[0]['steps'] or (
      mine.iloc[0]['score'] is None):
    return []
  row = mine.iloc[0]
  rows = study.read(tables)
  trained = rows.trained
  # By key and not by id: the study has only one of several rows with the same
  # training.
  own = trained[trained['training_key'] == row['training_key']]
  if not len(own):
    return []
  # Without the run itself and those that differ only by seed, which would make
  # the prediction look better than it is.
  kind = own['configuration'].iloc[0]
  fit, lacks = law.fit(trained[trained['configuration'] != kind])
  if fit is None:
    assert lacks is not None  # law.fit returns a law or what it lacks.
    return [title, 'No law can be fitted to the other runs. Needed: '
                   f'{wording.needed_text(lacks)}.\n']
  y, low, high = (float(v[0]) for v in fit.predict(
      {'rank': [float(row['rank'])]}, band='new'))
  words = [
      f"From RankMe {row['rank']:.2f} and the {fit.n} other runs that score "
      f'above their untrained network: mean score {y:.3f}, 95 % {low:.3f} to '
      f"{high:.3f}. Observed: {row['score']:.3f}."]
  if not own['gain'].iloc[0] > 0:
    words.append('This run scores no higher than its untrained network, so '
                 'the law does not apply to it.')
  if not math.isfinite(fit.ci('Q_inf')[1]):
    words.append('The other runs do not bound Q_inf, so the law predicts '
                 'nothing for larger models.')
  rivals = law.of_rivals(rows, law.predictors(trained))
  words.append(f'Over the sweep: {wording.measured(rivals)}; '
               f'{wording.compared(rivals)}.')
  return [title, ' '.join(words) + '\n']
