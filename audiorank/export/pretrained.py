"""A model as a folder that the hub understands, and back.

  model.safetensors         the official Dasheng's names and shapes
  config.json               the official arguments, and the config of the run
  preprocessor_config.json  the front end
  README.md                 the model card

The official code reads the first two as it reads its own; ours finds in
`config.json` under "audiorank" all that the run was trained with.
"""


import numpy as np

from audiorank import dasheng
from audiorank import files
from audiorank import records
from audiorank.dasheng import sizes

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
FRONT_END, CARD = 'preprocessor_config.json', 'README.md'
FILES = (WEIGHTS, CONFIG, FRONT_END, CARD)
# Fields that name folders of the machine it was trained on.
PLACES = (('data', 'root'), ('eval', 'tasks'))
# The front end, as the hub's Dasheng writes it.
MEL = {'sampling_rate': 16_000, 'n_mels': 64, 'n_fft': 512, 'win_size': 512,
       'hop_size': 160, 'f_min': 0, 'f_max': 8000, 'center': True,
       'top_db': 120}


def save_pretrained(folder, config, params, about=None, decoder=False,
                    sweep=None):
  """Writes a model's folder; `audiorank.load(folder)` reads it.

  Args:
    folder: new, or one that was written so before.
    config: the run's config, or its `model` part.
    params: the linen variables.
    about: of encoders.weights; where it names a run, the card is written from
      the run's records.
    decoder: keep the decoder as well.
    sweep: folder of the sweep whose law the card asks; by default the run's
      parent folder where that is a sweep.

  Returns:
    the folder.

  Raises:
    ValueError: the folder holds something else, arrays that do not fit the
      config, or safetensors is missing.
  """
  kind = getattr(config, 'model', config).front
  if kind != 'log_mel':
    raise ValueError(f"{folder}: model.front {kind!r}: expected 'log_mel', "
                     'all that Dasheng has')
  try:
    import safetensors.numpy
  except ModuleNotFoundError:
    raise ValueError(f"{folder}: needs safetensors (pip install "
                     "'audiorank[hub]')") from None
  from audiorank.export import card  # It needs the laws; reading does not.
  folder = files.path(folder)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'{folder}: a file, expected a new folder')
  if folder.is_dir():
    other = sorted({p.name for p in folder.iterdir()} - {*FILES})
    if other:
      raise ValueError(f'{folder}: holds {other[0]}, expected a new folder or '
                       'one of a saved model')
  if not decoder and 'encoder' in params['params']:
    params = {kind: {'encoder': tree['encoder']}
              for kind, tree in params.items()}
  state = dasheng.to_state_dict(config, params)
  if not decoder:  # As the hub's Dasheng has it.
    state = {f'encoder.{name}': x for name, x in state.items()}
  text = card.write(config, params, about or {}, sweep)
  folder.mkdir(parents=True, exist_ok=True)
  # Weights first: a folder without its config.json is not a model yet.
  # In memory first: the library's own file has mode 0600, and a full disk
  # raises an error of its own.
  files.write_bytes(folder / WEIGHTS, safetensors.numpy.save(
      {name: np.ascontiguousarray(x) for name, x in state.items()},
      metadata={'format': 'pt'}))  # What readers of the hub look for.
  files.write_json(folder / FRONT_END, {
      'feature_extractor_type': 'DashengFeatureExtractor', **MEL})
  whole = records.plain(config)
  for part, field in PLACES:
    if part in whole:
      whole[part][field] = ''
  files.write_json(folder / CONFIG, {
      'architectures': ['DashengModel'], 'model_type': 'dasheng',
      'encoder_kwargs': official(getattr(config, 'model', config)),
      'audiorank': whole if 'model' in whole else {'model': whole}})
  files.write_text(folder / CARD, text)
  return folder


def official(model):
  """Returns the arguments of the official class for a model config."""
  ours = sizes.as_dict(model)
  return {**{theirs: ours[name] for theirs, name in sizes.ARGUMENTS.items()},
          **sizes.FIXED}


def load_pretrained(folder):
  """Returns (config, params) of a folder of `save_pretrained` or the hub.

  Raises:
    FileNotFoundError: a file is missing; names it.
    ValueError: damaged or foreign weights, or another front end than
      Dasheng's; names the file and the field.
  """
  folder = files.path(folder)
  for name in (WEIGHTS, CONFIG):
    if not (folder / name).is_file():
      raise FileNotFoundError(f'{folder / name}: no such file: expected the '
                              'folder of a saved model')
  if (folder / FRONT_END).is_file():
    check_front_end(folder / FRONT_END)
  return of_files(folder / WEIGHTS, files.read_json(folder / CONFIG))


def check_front_end(path):
  """Raises ValueError where a preprocessor is not the front end of ours."""
  said = files.read_json(path)
  for field, value in MEL.items():
    if field in said and said[field] != value:
      raise ValueError(f'{path}: {field} {said[field]!r}, expected {value!r}')


def of_files(weights, said):
  """Returns (config, params) of a weights file and what config.json says."""
  ours = said.get('audiorank')
  if ours is None:
    return dasheng.load(weights, said.get('encoder_kwargs', said))
  if not isinstance(ours, dict) or not isinstance(ours.get('model'), dict):
    raise ValueError(f'{weights.parent / CONFIG}: audiorank.model is missing')
  config, params = dasheng.load(weights, ours['model'])
  return records.frozen({**ours, 'model': config.model.to_dict()}), params
