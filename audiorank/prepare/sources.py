"""Finds the recording that a file was cut from, by manifest.csv or a pattern.

Clips of the same recording resemble each other, so splits, subsets and the
interval of RankMe are by recording. If clips were cut from longer recordings, a
table with the columns `file` and `source` has to say from which:

  file,source
  clips/a_000.wav,interview 12
  clips/a_001.wav,interview 12

A column `category` is used as well, also without `source`. Any usual delimiter
and encoding is read. Names are compared from the end of their paths:
./clips/a.wav, clips\\a.wav, /data/set/clips/a.wav and a.wav all mean
clips/a.wav, as long as only one file fits.
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import csv
import io
import pathlib
import re
from typing import Any
from typing import NamedTuple
import unicodedata

FILE = ('file', 'path', 'filename', 'file_name', 'filepath', 'file_path',
        'audio_filepath', 'fname')
SOURCE = ('source', 'recording')
DELIMITERS = ',;\t|'


class Row(NamedTuple):
  """A row of the table. A missing column or value is ''."""
  file: str
  source: str
  category: str


class Table(NamedTuple):
  """A table of sources."""
  rows: list[Row]  # Those with a file.
  note: str  # Why it is not used, or ''.
  recordings: bool = True  # Whether it has a column of recordings.


def read(path: pathlib.Path, file_column: str = '',
         source_column: str = '') -> Table:
  """Reads a table of sources.

  Args:
    path: a .csv or .tsv, with any usual delimiter and encoding.
    file_column: name of the column of file names; '' looks for one of FILE.
    source_column: the same for the column of recordings, and SOURCE.

  Raises:
    ValueError: it cannot be read as a table, or lacks a column that was asked
      for.
  """
  text = _from_header(_text(path))
  head, _, rest = text.partition('\n')
  delimiter = ''
  if head.strip().lower().startswith('sep='):  # As Excel marks it.
    delimiter, text = head.strip()[4:5], rest
    head = rest.partition('\n')[0]
  if not delimiter:
    # Delimiters within quotes do not count.
    bare = re.sub('"[^"]*"', '', head)
    delimiter = max(DELIMITERS, key=bare.count)
    if delimiter not in bare:
      delimiter = ' '  # As a shell prints columns.
  quoting: Any = csv.QUOTE_MINIMAL
  if '"' in text and _is_unquoted(text, delimiter):
    quoting = csv.QUOTE_NONE
  try:
    rows = list(csv.reader(io.StringIO(text, newline=''), quoting=quoting,
                           delimiter=delimiter, skipinitialspace=True))
  except csv.Error as error:
    raise ValueError(f'{path}: unreadable: {error}') from error
  names = []
  if rows:
    # Names of columns compare without quotes and case.
    names = [cell.strip(' \t"\'#').lower() for cell in rows[0]]
  file = _column(path, names, file_column, FILE)
  source = _column(path, names, source_column, SOURCE)
  category = _column(path, names, '', ('category',))
  if file is None or source is None and category is None:
    columns = ', '.join(n for n in names[:6] if n) or 'none'
    return Table([], 'expected columns file and source or category, found '
                     f'{columns}: not used')
  named = [Row(_cell(r, file), _cell(r, source), _cell(r, category))
           for r in rows[1:] if _cell(r, file)]
  note = ''
  if not named:
    note = 'no row names a file: not used'
  return Table(named, note, source is not None)


def _is_unquoted(text: str, delimiter: str) -> bool:
  """Returns whether every line is a row, so that quotes enclose no line ends.

  Transcripts in Common Voice contain single quotation marks, from which a
  reader of CSV would take all rows up to the next one for one cell.
  """
  head, *lines = (line for line in text.split('\n') if line.strip())
  # Delimiters within quotes in the header: the quotes do enclose cells.
  columns = re.sub('"[^"]*"', '', head).count(delimiter)
  return all(line.count(delimiter) == columns for line in lines)


def _from_header(text: str) -> str:
  """Returns a table without the empty lines and comments before its header."""
  while text:
    line, _, rest = text.partition('\n')
    names = re.split('[,;|\\s]+', line.lower())
    comment = line.lstrip().startswith('#') and not any(
        name.strip('"\'#') in FILE for name in names)
    if line.strip() and not comment:
      break
    text = rest
  return text


def _cell(row: list[str], column: int | None) -> str:
  """Returns a cell, or '' if there is no such column or the row is short."""
  if column is None or column >= len(row):
    return ''
  text = row[column].strip()
  if len(text) > 1 and text[0] == text[-1] == '"':  # Of `_is_unquoted`.
    text = text[1:-1].replace('""', '"')
  if len(text) > 1 and text[0] == text[-1] == "'":  # As shells quote.
    return text[1:-1]
  return text


def _text(path: pathlib.Path) -> str:
  """Returns the text of a file, with its lines ending in line feeds.

  Raises:
    ValueError: it is not a text file.
  """
  data = path.read_bytes()
  # A byte order mark, as Excel's "Unicode text" has it.
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    coding = 'utf-16'
  # UTF-16 without a mark: every second byte of plain letters is zero.
  elif data[1:64:2] and not any(data[1:64:2]):
    coding = 'utf-16-le'
  elif data[:64:2] and not any(data[:64:2]):
    coding = 'utf-16-be'
  else:
    coding = 'utf-8-sig'
  try:
    text = data.decode(coding)
  except UnicodeDecodeError:
    # The encoding of spreadsheets on Windows. It can decode any bytes.
    text = data.decode('cp1252', 'replace')
  if '\0' in text:
    raise ValueError(f'{path}: unreadable: not a text file')
  # A name may contain a carriage return, so only one before a line feed is the
  # end of a line. Without any line feed they are the line ends of old Macs.
  if '\n' not in text:
    return text.replace('\r', '\n')
  return text.replace('\r\n', '\n')


def _column(path: pathlib.Path, names: list[str], asked: str,
            usual: tuple[str, ...]) -> int | None:
  """Returns the position of a column, or None.

  Args:
    path: for messages.
    names: of the columns, in lower case.
    asked: name that the user asked for, or ''.
    usual: names to look for otherwise.

  Raises:
    ValueError: there is no column of the name that was asked for.
  """
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
    files: names as in the manifest of the corpus.
    root: the input folder, with which absolute names may begin.

  Returns:
    {file: Row}, and counts: rows, unmatched, ambiguous, contradicted (a file
    that an earlier row gives another recording or category), and an example of
    the last three.
  """
  files = list(files)
  exact = set(files)
  # By the last part of the name, with its ending and without. Only candidates
  # with the same last part are compared in full.
  ends, stems = collections.defaultdict(list), collections.defaultdict(list)
  for file in files:
    base = _plain(file).rpartition('/')[2]
    ends[base.casefold()].append(file)
    stems[_bare(base.rpartition('.')[0]).casefold()].append(file)
  by_file: dict[str, Row] = {}
  counts: dict[str, Any] = {
      'rows': len(table.rows), 'unmatched': 0, 'ambiguous': 0,
      'contradicted': 0, 'example': ''}
  for row in table.rows:
    name = row.file
    if name not in exact:
      # An exact name wins; otherwise paths are compared from their ends.
      fits = _fitting(_plain(name, root), ends, stems)
      # Two files fit, or none: no guess, since a wrong recording would leak
      # clips from training into validation.
      if len(fits) != 1:
        problem = 'unmatched'
        if fits:
          problem = 'ambiguous'
        counts[problem] += 1
        counts['example'] = counts['example'] or row.file
        continue
      name = fits[0]
    if name in by_file and (by_file[name].source, by_file[name].category) != (
        row.source, row.category):
      counts['contradicted'] += 1
      counts['example'] = counts['example'] or row.file
      continue
    by_file[name] = row
  return by_file, counts


def _fitting(name: str, ends: Mapping[str, list[str]],
             stems: Mapping[str, list[str]]) -> list[str]:
  """Returns the files that a name of a table may mean.

  Args:
    name: from `_plain`.
    ends, stems: {last part of the name, in lower case: files}, with its ending
      and without.
  """
  base = name.rpartition('/')[2]
  # Case counts only where it decides between two files.
  for fold in (str, str.casefold):
    fits = [f for f in ends.get(base.casefold(), ())
            if _agree(fold(_plain(f)), fold(name))]
    if not fits:
      # Many tables have names without ending, or numbers.
      fits = [f for f in stems.get(_bare(base).casefold(), ())
              if _agree(_stem(fold(_plain(f))), _stem(fold(f'{name}.')))]
    if fits:
      break
  return fits


def _stem(name: str) -> str:
  """Returns a path without the ending, its last part as `_bare`."""
  folder, slash, last = name.rpartition('.')[0].rpartition('/')
  return folder + slash + _bare(last)


def _plain(name: str, root: str = '') -> str:
  """Returns a path with slashes, without ./ and without the root."""
  # NFC, because macOS decomposes accents in file names.
  name = unicodedata.normalize('NFC', name.replace('\\', '/'))
  root = root.replace('\\', '/').rstrip('/')
  if root and name.startswith(root + '/'):
    name = name[len(root) + 1:]
  return '/'.join(p for p in name.split('/') if p not in ('', '.'))


def _bare(stem: str) -> str:
  """Returns a number without leading zeros: 2 means the file 000002.mp3."""
  if stem.isdigit():
    return stem.lstrip('0')
  return stem


def _agree(one: str, two: str) -> bool:
  """Returns whether the shorter of two paths is the end of the longer."""
  a, b = one.split('/'), two.split('/')
  count = min(len(a), len(b))
  return a[-count:] == b[-count:]


def recording(text: str) -> str:
  """Returns the recording of a source: 'x.ogg + 6' is a piece of x.ogg."""
  return text.partition(' + ')[0]


def of_pattern(pattern: str, files: Iterable[str]) -> tuple[dict, int]:
  """Finds the recording in each name by a regular expression.

  Args:
    pattern: searched in the names. The recording's name consists of its groups,
      joined by '/', or is the whole match if it has none.
    files: names.

  Returns:
    {file: recording} of the names that it matches, and the number of others.

  Raises:
    ValueError: it is not a regular expression.
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
