"""What was kept, refused, passed over and assumed, in a few lines."""

from collections.abc import Mapping

NAMED = 3  # Examples of each kind of what was passed over.


def lines(about: Mapping) -> list[str]:
  """Returns the summary of a corpus, a line each.

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
  return out + [_refused(about), _passed_over(about),
                _sources(about['sources_from'])]


def attention(about: Mapping) -> str:
  """Returns what wants a look, in one line, or ''."""
  parts = [f'{count} files {reason}' for reason, count in sorted(
      about['refused'].items())]
  # One of each kind; the others are counted above.
  parts += [f'{ascii(name)[1:-1]}: {why}' for why, name in {
      why: name for name, why in about['suspects'].items()}.items()]
  sources = about['sources_from']
  if sources.get('note') or sources.get('unmatched') or sources.get(
      'ambiguous'):
    parts.append(_sources(sources).removeprefix('sources: '))
  return f'look at: {"; ".join(parts)}' if parts else ''


def _refused(about: Mapping) -> str:
  reasons = []
  for reason, count in sorted(about['refused'].items()):
    forms = about['refused_formats'].get(reason, {})
    hours = sum(row['hours'] for row in forms.values())
    parts = ', '.join(f'{form} {row["files"]}'
                      for form, row in sorted(forms.items()))
    heard = f', {hours:.2f} h of them decoded' if hours >= .005 else ''
    reasons.append(f'{count} {reason} ({parts}{heard})')
  return 'refused: ' + ('; '.join(reasons) + '; see quarantine.jsonl'
                        if reasons else 'none')


def _passed_over(about: Mapping) -> str:
  """Says which other files there were, and what may hold sound by name."""
  text = f'passed over: {about["ignored"]} other files'
  kinds = list(about['ignored_kinds'].items())
  if kinds:
    text += ' (' + ', '.join(f'{n} {kind}' for kind, n in kinds[:5]) + (
        ', ...)' if len(kinds) > 5 else ')')
  by_why: dict[str, list[str]] = {}
  for name, why in about['suspects'].items():
    by_why.setdefault(why, []).append(ascii(name)[1:-1])
  for why, names in by_why.items():
    more = ', ...' if len(names) > NAMED else ''
    text += f'; {", ".join(names[:NAMED])}{more}: {why}'
  if about['suspects_count'] > len(about['suspects']):
    text += f'; {about["suspects_count"]} such files in all'
  return text


def _sources(about: Mapping) -> str:
  """Says where the recordings' names come from, and what was assumed."""
  rest = 'every other file counts as a recording of its own'
  if not about:
    return ('sources: no manifest.csv; every file counts as a recording of '
            'its own')
  if 'pattern' in about:
    return (f'sources: {about["files"]} files by the pattern '
            f'{about["pattern"]!r}, {about["unmatched"]} do not fit it; {rest}')
  if about['note']:
    return f'sources: {about["table"]}: {about["note"]}; {rest}'
  missing = about['unmatched'] + about['ambiguous']
  text = (f'sources: {about["table"]}: {about["rows"] - missing} of '
          f'{about["rows"]} rows name a file')
  if missing:
    text += (f' ({about["unmatched"]} name none, {about["ambiguous"]} more '
             f'than one; such as {about["example"]!r})')
  return f'{text}; {rest}'
