"""Files of a Hugging Face repository, with one-line errors.

huggingface_hub keeps downloads in its own cache, so that a second call needs no
network. Only weights and descriptions are downloaded, never code.
"""

from collections.abc import Sequence
import pathlib
import re

from audiorank import files

PREFIX = 'hf:'
NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
CARD = 'README.md'
# Reasons by the name of the exception: huggingface_hub is not imported for it.
REASONS = {
    'GatedRepoError': 'the repository is gated: accept its terms on the hub, '
                      'then log in with `hf auth login`',
    'RepositoryNotFoundError': 'the hub has no such repository, or it is '
                               'private',
    'RevisionNotFoundError': 'the repository has no such revision',
    'LocalEntryNotFoundError': 'the hub cannot be reached, and the files are '
                               'not in the local cache',
    'OfflineModeIsEnabled': 'HF_HUB_OFFLINE is set, and the files are not in '
                            'the local cache',
    'ConnectError': 'the hub cannot be reached',
    'ConnectionError': 'the hub cannot be reached'}


def split(name: str) -> tuple[str, str | None]:
  """Returns (repository or folder, revision) of 'hf:NAME[@REVISION]'."""
  name = name.removeprefix(PREFIX)
  # A folder may have an @ in its name.
  if files.path(name).is_dir():
    return name, None
  name, _, revision = name.partition('@')
  return name, revision or None


def download(name: str, patterns: Sequence[str], extra: str = 'hub',
             revision: str | None = None) -> pathlib.Path:
  """Returns the folder with some files of a repository.

  Args:
    name: 'owner/name'.
    patterns: names of files, with wildcards.
    extra: of setup.py, that installs huggingface_hub.
    revision: branch, tag or commit; None takes the newest.

  Raises:
    ValueError: huggingface_hub is missing, or has no such file and cannot get
      it; one line.
  """
  try:
    import huggingface_hub
  except ModuleNotFoundError:
    raise ValueError(
        f'{name}: no such file or folder; as a hub id it needs '
        f"huggingface_hub (pip install 'audiorank[{extra}]')") from None
  options = {}
  if revision:
    options['revision'] = revision
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(
        name, allow_patterns=list(patterns), **options))
  except Exception as error:  # Of httpx, requests or the hub itself.
    raise ValueError(f'{name}: no such file or folder, and the hub gives '
                     f'nothing: {reason(error)}') from None


def reason(error: BaseException) -> str:
  """Returns why a download failed, in one line."""
  # The hub's errors are paragraphs. The first known one in the chain of causes
  # says it best, but a gated repository is also a missing one.
  chain: list[BaseException] = []
  cause: BaseException | None = error
  while cause is not None and cause not in chain:
    chain.append(cause)
    cause = cause.__cause__ or cause.__context__
  for known, text in REASONS.items():
    if any(known == type(e).__name__ for e in chain):
      return text
  return ' '.join(str(error).split())[:200] or type(error).__name__


def revision_of(folder: pathlib.Path) -> str | None:
  """Returns the commit of a downloaded folder, None for another folder."""
  # huggingface_hub's cache is models--OWNER--NAME/snapshots/COMMIT.
  if folder.parent.name == 'snapshots':
    return folder.name
  return None


def licence(folder: pathlib.Path) -> str | None:
  """Returns the licence that a model card states, None without one."""
  path = folder / CARD
  if not path.is_file():
    return None
  text = path.read_text(encoding='utf-8', errors='replace')
  # The header alone: the text below may name other licences.
  header = re.match(r'---\s*\n(.*?)\n---', text, re.DOTALL)
  if not header:
    return None
  match = re.search(r'^license:\s*(\S[^\n]*)', header[1], re.MULTILINE)
  if match:
    return match[1].strip().strip('\'"')
  return None
