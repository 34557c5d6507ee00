"""Writes and reads a model as a folder for the Hugging Face hub.

  model.safetensors         with the official Dasheng's names and shapes
  config.json               the official arguments, and the config of the run
  preprocessor_config.json  the front end
  README.md                 the model card

The official code can read the first two. In `config.json` the entry "audiorank"
is the whole config of the run.
"""

import pathlib
import re
from typing import Any

from ml_collections import config_dict
import numpy as np

from audiorank import config as config_lib
from audiorank import dasheng
from audiorank import files
from audiorank.dasheng import sizes

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
FRONT_END, CARD = 'preprocessor_config.json', 'README.md'
FILES = (WEIGHTS, CONFIG, FRONT_END, CARD)
ENDINGS = ('.pt', '.stablehlo', '.onnx')  # Of exports that are one file.
# Fields with paths of the machine on which it was trained; they are emptied.
PLACES = (('data', 'root'), ('data', 'mixture'), ('eval', 'tasks'))
# The front end, as the hub's Dasheng writes it.
MEL = {'sampling_rate': config_lib.RATE, 'n_mels': 64, 'n_fft': 512,
       'win_size': 512, 'hop_size': 160, 'f_min': 0, 'f_max': 8000,
       'center': True, 'top_db': 120}

Params = dict[str, Any]  # Linen variables: {'params', 'batch_stats'}.


def save_pretrained(folder: files.Path, config: Any, params: Params,
                    about: dict[str, Any] | None = None,
                    decoder: bool = False, sweep: files.Path | None = None
                    ) -> pathlib.Path:
  """Writes a model's folder, which `audiorank.load(folder)` reads.

  Args:
    folder: a new one, or one of a saved model.
    config: the run's config, or its `model` part.
    params: the linen variables.
    about: from encoders.weights; if it names a run, the card is written from
      the run's records.
    decoder: also write the decoder.
    sweep: folder of the sweep with the law for the card; None takes the run's
      parent folder if that is a sweep.

  Returns:
    the folder.

  Raises:
    ValueError: the folder has other files, arrays that do not fit the config,
      or safetensors is missing.
  """
  kind = getattr(config, 'model', config).frontend
  if kind != 'log_mel':
    raise ValueError(f"{folder}: model.frontend {kind!r}: expected 'log_mel', "
                     'all that Dasheng has')
  try:
    import safetensors.numpy
  except ModuleNotFoundError:
    raise ValueError(f"{folder}: needs safetensors (pip install "
                     "'audiorank[hub]')") from None
  # Imported here: it needs the laws, which reading a model does not.
  from audiorank.export import card
  folder = files.path(folder)
  check_folder(folder)
  if not decoder:
    params = encoder_alone(params)
  state = dasheng.to_state_dict(config, params)
  if not decoder:  # Like Dasheng on the hub.
    state = {f'encoder.{name}': x for name, x in state.items()}
  text = card.write(config, params, about or {}, sweep)
  folder.mkdir(parents=True, exist_ok=True)
  # config.json is written last, because it makes the folder a model. Weights
  # are encoded in memory: a file that safetensors writes itself has mode 0600,
  # and a full disk raises another type of error.
  files.write_bytes(folder / WEIGHTS, safetensors.numpy.save(
      {name: np.ascontiguousarray(x) for name, x in state.items()},
      metadata={'format': 'pt'}))  # Readers of the hub require it.
  files.write_json(folder / FRONT_END, {
      'feature_extractor_type': 'DashengFeatureExtractor', **MEL})
  tree = config_lib.plain(config)
  for part, field in PLACES:
    if field in tree.get(part, {}):
      # The empty value of its type.
      tree[part][field] = type(tree[part][field])()
  if 'model' not in tree:
    # A model without a run has this part alone.
    tree = {'model': tree}
  files.write_json(folder / CONFIG, {
      'architectures': ['DashengModel'], 'model_type': 'dasheng',
      'encoder_kwargs': official(getattr(config, 'model', config)),
      'audiorank': tree})
  files.write_text(folder / CARD, text)
  return folder


def destination(text: str) -> pathlib.Path:
  """Returns the path of an export: a folder, or a file with a known ending.

  Args:
    text: the path. A slash at the end means a folder, whatever its ending.

  Raises:
    ValueError: it looks like a file of another kind, or is a folder of others.
    OSError: it cannot be written.
  """
  # A typing error such as model.onxn must not become a folder.
  out = files.path(text)
  # An ending begins with a letter, so that v1.5 is a folder.
  ending = re.fullmatch(r'\.[A-Za-z]\w*', out.suffix)
  if (ending and out.suffix not in ENDINGS and not text.endswith('/')
      and not out.is_dir()):
    raise ValueError(f'{text}: expected a file {", ".join(ENDINGS)}, or '
                     f'a folder ({text}/ for one of that name)')
  if out.suffix in ENDINGS and not text.endswith('/'):
    files.check_writable(out, '--out')
  else:
    check_folder(out)
    files.check_writable(out / CONFIG, '--out')
  return out


def check_folder(folder: pathlib.Path) -> None:
  """Raises ValueError for a folder with other files than those of a model."""
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'{folder}: a file, expected a new folder')
  if folder.is_dir():
    other = sorted({p.name for p in folder.iterdir()} - {*FILES})
    if other:
      raise ValueError(f'{folder}: contains {other[0]}, expected a new folder '
                       'or one of a saved model')


def encoder_alone(params: Params) -> Params:
  """Returns the linen variables of the encoder, without a decoder."""
  if 'encoder' not in params['params']:
    return params
  return {kind: {'encoder': tree['encoder']} for kind, tree in params.items()}


def official(model: Any) -> dict[str, Any]:
  """Returns the arguments of the official class for a model config."""
  ours = sizes.as_dict(model)
  return {**{theirs: ours[name] for theirs, name in sizes.ARGUMENTS.items()},
          **sizes.FIXED}


def load_pretrained(folder: files.Path
                    ) -> tuple[config_dict.FrozenConfigDict, Params]:
  """Returns (config, params) from a folder of `save_pretrained` or the hub.

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


def check_front_end(path: pathlib.Path) -> None:
  """Raises ValueError if a preprocessor differs from our front end."""
  fields = files.read_json(path)
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: a {type(fields).__name__}, expected fields')
  for field, value in MEL.items():
    # A field that the file does not name has the usual value.
    if fields.get(field, value) != value:
      raise ValueError(f'{path}: {field} {fields[field]!r}, expected {value!r}')


def of_files(weights: pathlib.Path, fields: Any
             ) -> tuple[config_dict.FrozenConfigDict, Params]:
  """Returns (config, params) from a weights file and its config.json."""
  source = weights.parent / CONFIG
  ours = run_config(source, fields)
  if ours is None:
    stated = fields.get('encoder_kwargs', fields)
  else:
    stated = ours['model']
  try:
    if not isinstance(stated, dict):
      raise ValueError(f'encoder_kwargs: {stated!r}, expected fields')
    sizes.read(stated)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from None
  try:
    config, params = dasheng.load(weights, stated)
  except ValueError as error:
    # Which of the two files is wrong cannot be seen here.
    if str(error).startswith(f'{weights}: config.'):
      raise ValueError(f'{error} ({source})') from None
    raise
  if ours is None:
    return config, params
  return config_lib.frozen({**ours, 'model': config.model.to_dict()}), params


def run_config(source: pathlib.Path, fields: Any) -> config_lib.Tree | None:
  """Returns the config of the run in a config.json; None if it has none.

  Args:
    source: the file, for messages.
    fields: its JSON.

  Raises:
    ValueError: it is no config; names file and part.
  """
  if not isinstance(fields, dict):
    raise ValueError(f'{source}: a {type(fields).__name__}, expected fields')
  if 'audiorank' not in fields:
    return None
  ours = fields['audiorank']
  if not isinstance(ours, dict) or not ours.get('model'):
    raise ValueError(f'{source}: audiorank.model is missing')
  for part in config_lib.PARTS:
    if not isinstance(ours.get(part, {}), dict):
      raise ValueError(f'{source}: audiorank.{part}: {ours[part]!r}, expected '
                       'fields')
  return config_lib.complete(ours)
