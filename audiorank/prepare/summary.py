"""Summarises a corpus in a few lines: accepted, refused and unread files."""

from collections.abc import Mapping

NAMED = 3  # Examples of each kind of file that is not read.


def lines(about: Mapping) -> list[str]:
  """Returns the lines of a corpus's summary.

  Args:
    about: the contents of corpus.json.
  """
  counts = (f'{about["hours"]:.2f} h in {about["records"]} records of '
            f'{about["files"]} files from {about["sources"]} sources')
  formats = ', '.join(f'{form} {row["hours"]:.2f} h in {row["files"]} files'
                   for form, row in sorted(about['formats'].items()))
  out = [counts, f'kept: {formats}']
  if about.get('copies'):
    out.append(f'copies: {about["copies"]} records are the same, sample by '
               'sample, as another one')
  return out + [_refused(about), _unread(about),
                _sources(about['sources_from'])]


def attention(about: Mapping) -> str:
  """Returns what the user should check, in one line, or ''."""
  parts = [f'{count} files {reason}' for reason, count in sorted(
      about['refused'].items())]
  # One example of each kind; `lines` has more.
  examples = {why: name for name, why in about['suspects'].items()}
  parts += [f'{ascii(name)[1:-1]}: {why}' for why, name in examples.items()]
  sources = about['sources_from']
  if any(sources.get(key) for key in (
      'note', 'unmatched', 'ambiguous', 'contradicted', 'missed')):
    parts.append(_sources(sources).removeprefix('sources: '))
  if not parts:
    return ''
  return f'look at: {"; ".join(parts)}'


def _refused(about: Mapping) -> str:
  reasons = []
  for reason, count in sorted(about['refused'].items()):
    forms = about['refused_formats'].get(reason, {})
    hours = sum(row['hours'] for row in forms.values())
    parts = ', '.join(f'{form} {row["files"]}'
                      for form, row in sorted(forms.items()))
    if hours >= .005:  # Shown as at least .01.
      parts += f', {hours:.2f} h of them decoded'
    reasons.append(f'{count} {reason} ({parts})')
  if not reasons:
    return 'refused: none'
  return f'refused: {"; ".join(reasons)}; see quarantine.jsonl'


def _unread(about: Mapping) -> str:
  """Returns the line on other files; names those that may contain sound."""
  text = f'passed over: {about["ignored"]} other files'
  kinds = [f'{count} {kind}' for kind, count in about['ignored_kinds'].items()]
  if kinds:
    text += f' ({_first(kinds, 5)})'
  by_why: dict[str, list[str]] = {}
  for name, why in about['suspects'].items():
    # ASCII, because a terminal may not show every name.
    by_why.setdefault(why, []).append(ascii(name)[1:-1])
  for why, names in by_why.items():
    text += f'; {_first(names, NAMED)}: {why}'
  if about['suspects_count'] > len(about['suspects']):
    # corpus.json names only the first of them.
    text += f'; {about["suspects_count"]} such files in all'
  return text


def _first(names: list[str], most: int) -> str:
  """Returns the first names in a row, with dots for the others."""
  text = ', '.join(names[:most])
  if len(names) > most:
    text += ', ...'
  return text


def _sources(about: Mapping) -> str:
  """Returns the line on where the names of recordings come from."""
  rest = 'every other file counts as a recording of its own'
  if not about:
    return ('sources: no manifest.csv; every file counts as a recording of '
            'its own')
  parts = []
  if 'pattern' in about:
    named, missed = _by_pattern(about)
    parts.append(f'{named} files by the pattern {about["pattern"]!r}, '
                 f'{missed} do not fit it')
  if 'table' in about:
    parts.append(_table(about))
  # Of the table alone, and it names none.
  if 'pattern' not in about and (
      about['note'] or not about.get('recordings', True)):
    rest = 'every file counts as a recording of its own'
  return f'sources: {"; ".join(parts)}; {rest}'


def _by_pattern(about: Mapping) -> tuple[int, int]:
  """Returns how many names a pattern fits, and how many it does not."""
  if 'files_by_pattern' in about:
    return about['files_by_pattern'], about['missed']
  # Older versions used either a pattern or a table, with the same counts.
  return about['files'], about['unmatched']


def _table(about: Mapping) -> str:
  """Returns what a table of sources was used for."""
  if about['note']:
    return f'{about["table"]}: {about["note"]}'
  other = about.get('contradicted', 0)  # Not counted by older versions.
  missing = about['unmatched'] + about['ambiguous'] + other
  text = (f'{about["table"]}: {about["rows"] - missing} of '
          f'{about["rows"]} rows name a file')
  if missing:
    text += (f' ({about["unmatched"]} name none, {about["ambiguous"]} more '
             'than one')
    if other:
      text += (f', {other} give a file a second recording or category, which '
               'is not used')
    text += f'; such as {about["example"]!r})'
  if 'pattern' in about or not about.get('recordings', True):
    text += ', for its category only'
  return text
