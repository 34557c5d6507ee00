"""Reads official checkpoint files without executing anything in them."""

from collections.abc import Mapping
import pathlib
from typing import Any

from ml_collections import config_dict

from audiorank import files
from audiorank.dasheng import weights


def load(path: files.Path, config: Any = None
         ) -> tuple[config_dict.FrozenConfigDict, weights.Tree]:
  """Returns (config, params) of an official .pt or .safetensors file.

  Only a .pt needs torch.

  Args:
    path: the file.
    config: further information on the model; see from_state_dict.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: another kind of file, a damaged one, torch is missing, or as
      from_state_dict; names the file.
  """
  source = files.path(path)
  readers = {'.pt': read_torch, '.pth': read_torch,
             '.safetensors': read_safetensors}
  if source.suffix not in readers:
    raise ValueError(f'{source}: expected a file {", ".join(readers)}')
  if not source.is_file():
    raise FileNotFoundError(f'{source}: no such file')
  with files.local(source) as copy:
    state = readers[source.suffix](copy)
  try:
    return weights.from_state_dict(state, config)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from None


def read_torch(path: pathlib.Path) -> Mapping[str, Any]:
  """Returns the dictionary in a .pt file."""
  try:
    import torch
  except ModuleNotFoundError:
    raise ValueError(f"{path}: a {path.suffix} file needs torch (pip install "
                     "'audiorank[torch]'); .safetensors does not") from None
  # weights_only=True refuses all classes but tensors. The official training
  # code stores paths in its config, so this class is allowed. Python 3.13 has
  # it in another module.
  paths = [(pathlib.PurePosixPath, f'{module}.PosixPath')
           for module in ('pathlib', 'pathlib._local')]
  try:
    with torch.serialization.safe_globals(paths):
      dump = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # The unpickler raises errors of any type.
    reason = ' '.join(str(error).split())[:300]
    raise ValueError(
        f'{path}: cannot be read as weights alone: {reason}') from None
  if not isinstance(dump, Mapping):
    raise ValueError(f'{path}: contains a {type(dump).__name__}, expected a '
                     'state_dict')
  return dump


def read_safetensors(path: pathlib.Path) -> Mapping[str, Any]:
  """Returns the dictionary in a .safetensors file."""
  try:
    import safetensors.numpy
  except ModuleNotFoundError:
    raise ValueError(f"{path}: needs safetensors (pip install "
                     "'audiorank[hub]')") from None
  try:
    return safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path}: not a safetensors file: {error}') from None
