"""What the page is made of: its style, figures as data, tables, numbers."""

import base64
import html
import io

import numpy as np

STYLE = '''
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c;
        --line: #dcdcdc; --blue: #0072b2; --page: #ffffff; --over: #f5f8fa;
        --twin: #6f6f6f; --behind: #a33333; --warn: #fdf4ee }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a8a8a8; --line: #3a3d41; --blue: #6cb8ea;
          --page: #16181b; --over: #22262b; --twin: #9a9a9a;
          --behind: #f08f8f; --warn: #33261d }
  figure > img { background: #fff; border-radius: 6px } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 64rem;
       margin: 2.5rem auto 5rem; padding: 0 1.2rem; color: var(--ink);
       background: var(--page); overflow-wrap: anywhere }
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
tbody tr:hover { background: var(--over) }
tr.twin { color: var(--twin); font-style: italic }
tr.behind td, tr.behind a { color: var(--behind) }
th button { font: inherit; color: inherit; background: none; border: 0;
            padding: 0; cursor: pointer }
th[aria-sort=ascending] button::after { content: ' ▲' }
th[aria-sort=descending] button::after { content: ' ▼' }
details { border-bottom: 1px solid var(--line); padding: .3rem 0 }
summary { cursor: pointer }
.charts { display: grid; gap: .6rem;
          grid-template-columns:
              repeat(auto-fit, minmax(min(15rem, 100%), 1fr)) }
.charts figure { margin: .4rem 0 }
svg { width: 100%; max-width: 26rem; height: auto }
svg text { font-size: 11px; fill: var(--soft) }
svg path { fill: none; stroke: var(--line) }
polyline { fill: none; stroke: var(--blue); stroke-width: 1.8 }
polyline.faint { stroke: var(--soft); stroke-width: 1; opacity: .7 }
tr.own td { font-weight: 600 }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto }
figcaption, .small { font-size: .86rem; color: var(--soft) }
.warn { border-left: 4px solid #d55e00; background: var(--warn);
        padding: .5rem .9rem; font-size: .92rem }
.grid { display: grid; gap: 1rem 1.4rem;
        grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
.grid figure { margin: 0 }
@media (max-width: 40rem) { body { margin-top: 1rem; padding: 0 .8rem }
                           nav a { display: inline-block } }
@media print { nav { display: none } h2 { break-after: avoid }
               figure { break-inside: avoid } }
'''
# Sorting by a click on a heading; a link to a run opens it. Without scripts
# the page loses these two and nothing else.
SCRIPT = '''
for (const table of document.querySelectorAll('table.sorted')) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const first = [...body.rows];
  heads.forEach((head, i) => {
    const button = document.createElement('button');
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.onclick = () => {
      const up = head.getAttribute('aria-sort') === 'descending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const key = row => {
        const text = row.cells[i].textContent;
        const number = parseFloat(text);
        return Number.isNaN(number) || i === 0 ? text : number;
      };
      const missing = row => row.cells[i].textContent === '–';
      body.append(...first.slice().sort((a, b) => {
        if (missing(a) !== missing(b)) return missing(a) - missing(b);
        const x = key(a), y = key(b);
        const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0)
                                            : typeof x < typeof y ? -1 : 1;
        return up ? order : -order;
      }));
    };
  });
}
const show = name => {
  const run = document.getElementById(name);
  if (run && run.tagName === 'DETAILS') {
    run.open = true;
    run.scrollIntoView();
  }
};
document.addEventListener('click', event => {
  const link = event.target.closest('a[href^="#run-"]');
  if (link) show(link.getAttribute('href').slice(1));
});
show(location.hash.slice(1));
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


def rows(table, classes=None, kind='', link=''):
  """Returns an HTML table of a frame of texts.

  Args:
    table: a frame of texts.
    classes: a class per row, or None.
    kind: a class of the table: 'text' for words rather than numbers, 'sorted'
      for one that its headings sort.
    link: the column of run ids that lead to the account of their run, or ''.
  """
  if not len(table):
    return ''
  head = ''.join(f'<th>{html.escape(str(c))}</th>' for c in table.columns)
  body = []
  for i, (_, row) in enumerate(table.iterrows()):
    cells = ''.join(f'<td>{cell(v, c == link)}</td>' for c, v in row.items())
    mark = f' class="{classes[i]}"' if classes and classes[i] else ''
    body.append(f'<tr{mark}>{cells}</tr>')
  mark = f' class="{kind}"' if kind else ''
  return (f'<table{mark}><thead><tr>{head}</tr></thead><tbody>'
          f'{"".join(body)}</tbody></table>')


def cell(value, run):
  """Returns a cell's text; of a run's id a link to its account."""
  text = html.escape(str(value))
  return f'<a href="#run-{text}">{text}</a>' if run else text


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
