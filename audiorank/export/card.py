"""The model card: what a run's records say of the model, and nothing else."""

import math

from audiorank import checkpoint
from audiorank import files
from audiorank import flops
from audiorank import records
from audiorank.analysis import law
from audiorank.analysis import study
from audiorank.report import wording

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
z_ND = model.embed(['a.wav', 'b.flac'])      # one embedding a clip
z_LD, ms_L = model.timestamps('a.wav')       # one every 40 ms
```

Input is mono at 16 kHz (files are resampled); an embedding is the time mean of
the tokens after the last norm. The tensors carry the names of the official
PyTorch Dasheng, which loads them as its own.
'''


def write(config, params, about, sweep=None):
  """Returns the card of a model as Markdown.

  Args:
    config: the run's config, or its `model` part.
    params: the linen variables that are released.
    about: of encoders.weights; {} for a model without records.
    sweep: folder of the sweep whose law is asked; None takes the run's parent
      folder where that is a sweep.
  """
  m = getattr(config, 'model', config)
  count = flops.parameters(params['params'])
  heads = '1 head' if m.heads == 1 else f'{m.heads} heads'
  lines = [HEAD, f'# audiorank {size(m)}\n',
           'A masked autoencoder of log-mel patches after Dasheng (arXiv '
           f'2406.06992): width {m.width}, depth {m.depth}, {heads}, '
           f'{count:,} parameters as released, positions for '
           f'{m.target_frames / 100:g} s; longer clips are cut in chunks.\n',
           USE]
  workdir = run_of(about)
  if workdir is None:
    return '\n'.join([*lines, '## Training\n', 'The records of the training '
                      'are not with these weights.\n'])
  step = about['step']
  root = files.path(sweep) if sweep else workdir.parent
  # The runs of the folder of one lone run are no sweep.
  made = records.tables(root) if sweep or (
      root / 'sweep.json').is_file() else None
  return '\n'.join([*lines, *training(config, workdir, step),
                    *rank(workdir, step), *scores(workdir, step, made),
                    *prediction(workdir, step, made)])


def size(model):
  """Returns 'en<width>-<depth>'."""
  return f'en{model.width}-{model.depth}'


def run_of(about):
  """Returns the folder of the run that a checkpoint is of, or None."""
  if about.get('kind') != 'audiorank':
    return None
  folder, _ = checkpoint.find(about['checkpoint'])
  return folder.parent if (folder.parent / 'config.json').is_file() else None


def table(rows, head):
  """Returns a Markdown table as lines."""
  return [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}',
          *(f'| {" | ".join(map(str, row))} |' for row in rows), '']


def number(value, form='{:.3f}'):
  """Returns a number as text; what is missing is a dash."""
  missing = value is None or not math.isfinite(value)
  return '–' if missing else form.format(value)


def training(config, workdir, step):
  """Returns the lines on data and training."""
  about = records.read(workdir, 'run')
  hours = number(about[-1]['hours'], '{:.3g} h') if about else '–'
  corpus = about[-1]['corpus'][:12] if about else '–'
  clips = step * config.train.batch
  rows = [
      ('run', workdir.name), ('objective', config.objective),
      ('audio', f'{hours} (corpus {corpus})'),
      ('steps', f'{step} of {config.train.steps}'),
      ('clips seen', f'{clips:,} of {config.data.crop_seconds:g} s'),
      ('masking rate', f'{config.mask.ratio:g}'),
      ('peak learning rate', f'{config.opt.lr:g}'), ('seed', config.seed)]
  if about:
    flops = about[-1]['flops_per_clip']
    rows.append(('training FLOP', f"{flops['total'] * clips:.2e} with the "
                 f"decoder, {flops['encoder'] * clips:.2e} without"))
  return ['## Training\n', *table(rows, ('', ''))]


def rank(workdir, step):
  """Returns the lines on effective rank, the untrained reading beside it."""
  read = {r['step']: r for r in records.read(workdir, 'monitor')}
  if step not in read:
    return []
  rows = []
  for at in sorted({0, step} & set(read)):
    for name, text in (('rank', 'RankMe'), ('rank_center', 'centred')):
      e = read[at][name]
      rows.append((f'{text}, ' + ('untrained' if at == 0 else f'step {at}'),
                   number(e['value'], '{:.2f}'),
                   f"{number(e['low'], '{:.2f}')} to "
                   f"{number(e['high'], '{:.2f}')}"))
  r = read[step]
  return ['## Effective rank, without labels\n',
          *table(rows, ('', 'value', '95 %')),
          f"Of {r['n']} clips of {r['sources']} recordings, width "
          f"{r['width']}, {r['layer']} layer, eps {r['rank']['eps']:g}; "
          'RankMe is uncentred (arXiv 2210.02885).\n']


def scores(workdir, step, made):
  """Returns the lines on HEAR tasks, the untrained network beside them."""
  own = [r for r in records.read(workdir) if r['kind'].startswith('hear.')
         and r['step'] == step]
  if not own:
    return []
  base = untrained(workdir, made)
  rows = [(r['task'], r['metric'], number(r['result']['score']),
           number(base.get(r['task'])), r['result']['protocol'])
          for r in own]
  words = ('Untrained: the same network before training.' if base else
           'The untrained network was not scored.')
  return ['## Scores\n', *table(rows, ('task', 'measure', 'test score',
                                       'untrained', 'predictor')),
          f'{words}\n']


def untrained(workdir, made):
  """Returns {task: score} of the run's untrained baseline in its sweep."""
  if made is None or not len(made.tasks):
    return {}
  mine = made.runs[made.runs['run_id'] == workdir.name]
  if not len(mine):
    return {}
  same = made.tasks[made.tasks['run_id'] == mine.iloc[0]['baseline']]
  return dict(zip(same['task'], same['score']))


def prediction(workdir, step, made):
  """Returns the lines on what the sweep's law says of this run.

  The law is fitted without the run and those that differ in the seed alone.
  """
  title = '## What the law of its sweep predicts\n'
  if made is None:
    return []
  mine = made.runs[made.runs['run_id'] == workdir.name]
  if not len(mine) or step != mine.iloc[0]['steps'] or (
      mine.iloc[0]['score'] is None):
    return []
  row = mine.iloc[0]
  rows = study.read(made)
  trained = rows.trained
  # Of rows that are one training a single one stands in the study.
  own = trained[trained['training_key'] == row['training_key']]
  if not len(own):
    return []
  kind = own['configuration'].iloc[0]
  fit, lacks = law.fit(trained[trained['configuration'] != kind])
  if fit is None:
    return [title, 'No law is fitted to the other runs. Needed: '
                   f'{wording.needed_text(lacks)}.\n']
  y, low, high = (float(v[0]) for v in fit.predict(
      {'rank': [float(row['rank'])]}, band='new'))
  words = [
      f"From RankMe {row['rank']:.2f} and the {fit.n} other runs that score "
      f'above their untrained network: mean score {y:.3f}, 95 % {low:.3f} to '
      f"{high:.3f}. Observed: {row['score']:.3f}."]
  if not own['gain'].iloc[0] > 0:
    words.append('This run scores no higher than its untrained network, so '
                 'the law was not drawn for it.')
  if not math.isfinite(fit.ci('Q_inf')[1]):
    words.append('Those runs do not bound Q_inf: the law says nothing of '
                 'larger models.')
  rivals = law.of_rivals(rows, law.predictors(trained))
  words.append(f'Over the sweep: {wording.measured(rivals)}; '
               f'{wording.beside(rivals)}.')
  return [title, ' '.join(words) + '\n']
