"""Which recording a file was cut from: manifest.csv, or a pattern.

Clips of one recording resemble each other. Splits, subsets and the interval
of RankMe therefore go by recording, and whoever has clips cut from longer
recordings says so in a table with the columns `file` and `source`:

  file,source
  clips/a_000.wav,interview 12
  clips/a_001.wav,interview 12

It is read as a spreadsheet, a shell or pandas would have written it, and its
names are matched by the end of their paths: ./clips/a.wav, clips\\a.wav,
/data/set/clips/a.wav and a.wav all mean clips/a.wav where only one file fits.
"""

import collections
from collections.abc import Iterable
import csv
import io
import pathlib
import re
from typing import NamedTuple
import unicodedata

FILE = ('file', 'path', 'filename', 'file_name', 'filepath', 'file_path',
        'audio_filepath', 'fname')
SOURCE = ('source', 'recording')
DELIMITERS = ',;\t|'


class Row(NamedTuple):
  """A row of the table; '' where it has no such column or no value."""
  file: str
  source: str
  category: str


class Table(NamedTuple):
  """rows: those with a file.  note: what was wrong with it, or ''."""
  rows: list
  note: str


def read(path: pathlib.Path, file_column: str = '',
         source_column: str = '') -> Table:
  """Reads a table of sources.

  Args:
    path: a .csv or .tsv, of any usual delimiter and encoding.
    file_column: name of the column of file names; '' looks for a usual one.
    source_column: of the column of recordings, likewise.

  Raises:
    ValueError: it cannot be read as a table, or has no column of a name that
      was asked for.
  """
  text = _text(path)
  head, _, rest = text.partition('\n')
  delimiter = ''
  if head.strip().lower().startswith('sep='):  # As Excel marks it.
    delimiter, text = head.strip()[4:5], rest
    head = rest.partition('\n')[0]
  if not delimiter:
    bare = re.sub('"[^"]*"', '', head)
    delimiter = max(DELIMITERS, key=bare.count)
  try:
    rows = list(csv.reader(io.StringIO(text, newline=''),
                           delimiter=delimiter, skipinitialspace=True))
  except csv.Error as error:
    raise ValueError(f'{path}: unreadable: {error}') from error
  names = [cell.strip().strip('"\'').lower()
           for cell in (rows[0] if rows else [])]
  file = _column(path, names, file_column, FILE)
  source = _column(path, names, source_column, SOURCE)
  if file is None or source is None:
    columns = ', '.join(n for n in names[:6] if n) or 'none'
    return Table([], f'expected columns file and source, found {columns}: '
                     'not used')
  category = names.index('category') if 'category' in names else None
  cell = lambda row, column: '' if column is None or column >= len(row) else (
      row[column].strip())
  return Table([Row(cell(r, file), cell(r, source), cell(r, category))
                for r in rows[1:] if cell(r, file)], '')


def _text(path: pathlib.Path) -> str:
  data = path.read_bytes()
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    coding = 'utf-16'
  else:
    coding = 'utf-8-sig'
  try:
    text = data.decode(coding)
  except UnicodeDecodeError:
    # What spreadsheets on Windows write; every byte has a meaning in it.
    text = data.decode('cp1252', 'replace')
  if '\0' in text:
    raise ValueError(f'{path}: unreadable: not a text file')
  # A name may hold a carriage return: only one before a line feed ends a line.
  if '\n' not in text:
    return text.replace('\r', '\n')
  return text.replace('\r\n', '\n')


def _column(path: pathlib.Path, names: list[str], asked: str,
            usual: tuple[str, ...]) -> int | None:
  if asked:
    if asked.lower() not in names:
      raise ValueError(f'{path}: no column {asked!r}: it has '
                       f'{", ".join(names) or "none"}')
    return names.index(asked.lower())
  for name in usual:
    if name in names:
      return names.index(name)
  return None


def match(table: Table, files: Iterable[str],
          root: str) -> tuple[dict, dict]:
  """Finds the file that each row names.

  Args:
    table: of `read`.
    files: names as the manifest of the corpus will have them.
    root: the input folder, which absolute names may begin with.

  Returns:
    {file: Row} and counts: rows, unmatched, ambiguous, and an example of each
    of the last two.
  """
  files = list(files)
  exact = set(files)
  ends, stems = collections.defaultdict(list), collections.defaultdict(list)
  for file in files:
    base = _plain(file).rpartition('/')[2]
    ends[base].append(file)
    stems[_bare(base.rpartition('.')[0])].append(file)
  by_file = {}
  counts = {'rows': len(table.rows), 'unmatched': 0, 'ambiguous': 0,
            'example': ''}
  for row in table.rows:
    name = row.file
    if name not in exact:
      name = _plain(name, root)
      base = name.rpartition('/')[2]
      # A name without its ending, as many tables have it, where no other fits.
      fits = [f for f in ends.get(base, ()) if _agree(_plain(f), name)] or [
          f for f in stems.get(_bare(base), ()) if '/' not in name or _agree(
              _plain(f).rpartition('.')[0], name)]
      if len(fits) != 1:
        counts['ambiguous' if fits else 'unmatched'] += 1
        counts['example'] = counts['example'] or row.file
        continue
      name = fits[0]
    by_file[name] = row
  return by_file, counts


def _plain(name: str, root: str = '') -> str:
  """Returns a path with slashes, without ./ and without the root."""
  name = unicodedata.normalize('NFC', name.replace('\\', '/'))
  root = root.replace('\\', '/').rstrip('/')
  if root and name.startswith(root + '/'):
    name = name[len(root) + 1:]
  return '/'.join(p for p in name.split('/') if p not in ('', '.'))


def _bare(stem: str) -> str:
  """Returns a number without its zeros: 2 means the file 000002.mp3."""
  return stem.lstrip('0') if stem.isdigit() else stem


def _agree(one: str, two: str) -> bool:
  """Whether the shorter of two paths is the end of the longer."""
  a, b = one.split('/'), two.split('/')
  count = min(len(a), len(b))
  return a[-count:] == b[-count:]


def recording(text: str) -> str:
  """Returns a recording's name: 'x.ogg + 6' is a piece of x.ogg."""
  return text.partition(' + ')[0]


def of_pattern(pattern: str, files: Iterable[str]) -> tuple[dict, int]:
  """Finds the recording in each name by a regular expression.

  Args:
    pattern: searched in the names; its groups, joined by '/', are the
      recording's name, or the whole match where it has none.
    files: names.

  Returns:
    {file: recording} of those it fits, and how many it does not.

  Raises:
    ValueError: it is no regular expression.
  """
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise ValueError(f'source_pattern {pattern!r}: not a regular expression '
                     f'({error})') from error
  by_file, missed = {}, 0
  for file in files:
    fit = expression.search(file)
    if fit is None:
      missed += 1
      continue
    by_file[file] = '/'.join(g for g in fit.groups() if g) or fit.group()
  return by_file, missed
