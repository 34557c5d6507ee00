"""What says that a checkpoint is whole: a checksum of every file of a step.

  <folder>/<step>.sha256.json  {relative path: sha256}, beside <folder>/<step>/

Orbax commits a step whole, and restores a flipped bit without a word.
"""

import pathlib

import jax

from audiorank import files


def steps(folder):
  """Returns the committed steps of a checkpoint folder, ascending."""
  return sorted(int(p.name) for p in pathlib.Path(folder).glob('*')
                if p.name.isdigit() and p.is_dir())


def of(step_folder):
  """Returns {relative path: sha256} of every file of one step."""
  return {str(path.relative_to(step_folder)): files.sha256(path)
          for path in files.walk(step_folder)}


def seal(folder):
  """Writes the checksums of committed steps that have none yet.

  Of several processes the first does it; no other need wait.
  """
  if jax.process_index():
    return
  folder = pathlib.Path(folder)
  for step in steps(folder):
    path = folder / f'{step}.sha256.json'
    if not path.exists():
      files.write_json(path, of(folder / str(step)))
  for path in folder.glob('*.sha256.json'):
    if not (folder / path.name.split('.')[0]).exists():
      path.unlink(missing_ok=True)


def verify(folder, step):
  """Returns what is wrong with a step, or '' when its files are whole.

  A step without checksums counts as whole here: orbax committed it, and its
  checksums may have been left behind when it was copied.
  `checkpoint.restore`, which can go back, does not trust it.
  """
  folder = pathlib.Path(folder)
  path = folder / f'{step}.sha256.json'
  if not path.exists():
    return ''
  try:
    want = files.read_json(path)
  except ValueError:
    return f'{path.name} is damaged'
  if not isinstance(want, dict):
    return f'{path.name} is damaged'
  have = of(folder / str(step))
  for name in sorted(set(want) | set(have)):
    if name not in have:
      return f'{name} is missing'
    if want.get(name) != have[name]:
      return f'{name} is not what was written'
  return ''
