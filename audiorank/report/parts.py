"""What the page is made of: its style, figures as data, tables, numbers."""

import base64
import html
import io

import numpy as np

STYLE = '''
:root { --ink: #1b1b1b; --soft: #5c5c5c; --line: #dcdcdc; --blue: #0072b2 }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 64rem;
       margin: 2.5rem auto 5rem; padding: 0 1.2rem; color: var(--ink) }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; padding-bottom: .25rem;
     border-bottom: 2px solid var(--blue) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
nav { font-size: .9rem; margin: 1rem 0 } nav a { margin-right: .9rem }
a { color: var(--blue); text-decoration: none }
ul { padding-left: 1.2rem } li { margin: .25rem 0 }
table { border-collapse: collapse; font-size: .84rem; margin-top: .8rem;
        display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { padding: .28rem .5rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--soft) }
th:first-child, td:first-child { text-align: left }
table.text th, table.text td { text-align: left; white-space: normal;
                               vertical-align: top }
table.text td:first-child { white-space: nowrap }
tbody tr:hover { background: #f5f8fa }
tr.twin { color: #777; font-style: italic } tr.behind td { color: #a33 }
tr.own td { font-weight: 600 }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto }
figcaption, .small { font-size: .86rem; color: var(--soft) }
.warn { border-left: 4px solid #d55e00; background: #fdf4ee;
        padding: .5rem .9rem; font-size: .92rem }
.grid { display: grid; gap: 1rem 1.4rem;
        grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)) }
.grid figure { margin: 0 }
@media print { nav { display: none } h2 { break-after: avoid }
               figure { break-inside: avoid } }
'''


def image(draw, caption):
  """Returns a <figure> of what draw() draws, or its excuse."""
  try:
    ax = draw()
  except ValueError as error:
    return f'<p class="small">Not drawn: {html.escape(str(error))}.</p>'
  buffer = io.BytesIO()
  ax.figure.savefig(buffer, format='png', dpi=130, bbox_inches='tight')
  data = base64.b64encode(buffer.getvalue()).decode()
  text = html.escape(caption)
  return (f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
          f'<figcaption>{text}</figcaption></figure>')


def number(value, form='{:.3f}'):
  """Returns a number as text; what is missing is a dash, never 0."""
  if value is None or (isinstance(value, float) and not np.isfinite(value)):
    return '–'
  return form.format(value)


def rows(table, classes=None, kind=''):
  """Returns an HTML table of a frame of texts.

  Args:
    table: a frame of texts.
    classes: a class per row, or None.
    kind: a class of the table: 'text' for words rather than numbers.
  """
  if not len(table):
    return ''
  head = ''.join(f'<th>{html.escape(str(c))}</th>' for c in table.columns)
  body = []
  for i, (_, row) in enumerate(table.iterrows()):
    cells = ''.join(f'<td>{html.escape(str(v))}</td>' for v in row)
    mark = f' class="{classes[i]}"' if classes and classes[i] else ''
    body.append(f'<tr{mark}>{cells}</tr>')
  mark = f' class="{kind}"' if kind else ''
  return (f'<table{mark}><thead><tr>{head}</tr></thead><tbody>'
          f'{"".join(body)}</tbody></table>')


def percent(value):
  """Returns a fraction as whole per cent."""
  return '–' if not np.isfinite(value) else f'{100 * value:.0f} %'


def chance(p):
  """Returns a p value; what rounds to nothing is not nothing."""
  return '<0.001' if p < .001 else number(p)


def interval(row, name):
  """Returns 'value [low, high]' of a rank."""
  if name not in row or not np.isfinite(row[name]):
    return '–'
  return (f'{row[name]:.1f} [{row[f"{name}_low"]:.1f}, '
          f'{row[f"{name}_high"]:.1f}]')


def between(low, high, form='{:+.2f}'):
  """Returns '[low, high]', a dash where there is none."""
  return ('–' if low is None or not np.isfinite([low, high]).all() else
          f'[{form.format(low)}, {form.format(high)}]')


def small(text):
  """Returns a paragraph of small print."""
  return f'<p class="small">{html.escape(text)}</p>'


def listed(words):
  """Returns sentences as a list, nothing for none."""
  if not words:
    return ''
  return f'<ul>{"".join(f"<li>{html.escape(w)}</li>" for w in words)}</ul>'
