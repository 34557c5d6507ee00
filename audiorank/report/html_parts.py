"""What the page is made of: its style, figures as SVG, tables."""

from collections.abc import Callable
from collections.abc import Sequence
import hashlib
import html
import io
import re

import matplotlib
import pandas as pd

from audiorank.figures import style

STYLE = '''
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c;
        --line: #dcdcdc; --blue: #0072b2; --page: #ffffff; --over: #f5f8fa;
        --off: #6f6f6f; --behind: #a33333; --warn: #fdf4ee; --lead: #eef5fa;
        --shade: #00000038; --good: #00694c; --bad: #b04400 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a8a8a8; --line: #3a3d41; --blue: #6cb8ea;
          --page: #16181b; --over: #22262b; --off: #9a9a9a;
          --behind: #f08f8f; --warn: #33261d; --lead: #1d2731;
          --shade: #000000b0; --good: #4fc79f; --bad: #f0955a } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 78rem;
       margin: 2.5rem auto 5rem; padding: 0 1.2rem; color: var(--ink);
       background: var(--page); overflow-wrap: anywhere }
p, ul, h1, nav, figcaption { max-width: 62rem }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; padding-bottom: .25rem;
     border-bottom: 2px solid var(--blue) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
nav { font-size: .9rem; margin: 1rem 0 } nav a { margin-right: .9rem }
a { color: var(--blue); text-decoration: none }
ul { padding-left: 1.2rem } li { margin: .25rem 0 }
.lead { background: var(--lead); border-left: 4px solid var(--blue);
        padding: .3rem 1rem; max-width: 62rem }
.lead p { margin: .6rem 0 }
.wide { overflow-x: auto; margin-top: .8rem; max-width: 100%;
        background:
          linear-gradient(to right, var(--page) 30%, transparent) 0 0,
          linear-gradient(to left, var(--page) 30%, transparent) 100% 0,
          linear-gradient(to right, var(--shade), transparent) 0 0,
          linear-gradient(to left, var(--shade), transparent) 100% 0;
        background-repeat: no-repeat;
        background-size: 2.5rem 100%, 2.5rem 100%, .8rem 100%, .8rem 100%;
        background-attachment: local, local, scroll, scroll }
table { border-collapse: collapse; font-size: .84rem;
        font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .28rem .5rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--soft); white-space: normal;
     vertical-align: bottom }
td[data-label=what], td[data-label=formula] { text-align: left }
td[data-label=what] { white-space: normal; min-width: 9rem }
th[data-label=what], th[data-label=formula], th:first-child, td:first-child {
  text-align: left }
table.text th, table.text td { text-align: left; white-space: normal;
                               vertical-align: top }
table.text td:first-child { white-space: nowrap }
table.claims th { white-space: nowrap }
table.claims td:first-child { white-space: normal; font-weight: 600;
                              min-width: 11rem }
td.verdict { white-space: nowrap !important }
tr.holds .verdict { color: var(--good); font-weight: 600 }
tr.fails .verdict { color: var(--bad); font-weight: 600 }
tbody tr:hover { background: var(--over) }
tr.off { color: var(--off); font-style: italic }
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
.charts svg { width: 100%; max-width: 26rem; height: auto }
.charts svg text { font-size: 11px; fill: var(--soft) }
.charts svg path { fill: none; stroke: var(--line) }
polyline { fill: none; stroke: var(--blue); stroke-width: 1.8 }
polyline.faint { stroke: var(--soft); stroke-width: 1; opacity: .7 }
tr.own td { font-weight: 600 }
figure { margin: 1rem 0 }
.drawn svg { fill: currentColor; width: 100%; max-width: 38rem;
             height: auto; display: block }
.drawn svg text { fill: currentColor; font-family: system-ui, sans-serif }
figcaption, .small { font-size: .86rem; color: var(--soft) }
.warn { border-left: 4px solid #d55e00; background: var(--warn);
        padding: .5rem .9rem; font-size: .92rem }
.grid { display: grid; gap: 1rem 1.4rem; max-width: 72rem;
        grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
.grid figure { margin: 0 }
.controls { display: flex; flex-wrap: wrap; gap: .4rem 1rem;
            margin: .6rem 0; font-size: .86rem; align-items: baseline }
.controls select, .controls input, .controls button {
  font: inherit; color: inherit; background: var(--over);
  border: 1px solid var(--line); border-radius: .25rem; max-width: 16rem }
.controls input { width: 6.5rem }
#shown td button { font: inherit; background: none; border: 0; padding: 0;
                   color: var(--blue); cursor: pointer }
#explore svg { width: 100%; height: auto }
#explore svg text { font-size: 11.5px; fill: var(--soft) }
#explore svg > path:first-of-type { fill: none; stroke: var(--line) }
#explore .dot { cursor: pointer; stroke-width: 1.6; fill-opacity: .75 }
.key { white-space: nowrap }
progress { width: 14rem; vertical-align: middle; accent-color: var(--blue) }
@media (max-width: 40rem) {
  body { margin-top: 1rem; padding: 0 .8rem }
  nav a { display: inline-block }
  table:not(.claims) td:first-child, table:not(.claims) th:first-child {
    position: sticky; left: 0; background: var(--page); white-space: normal;
    min-width: 7.5rem; max-width: 9rem; overflow-wrap: anywhere }
  table.claims thead { display: none }
  table.claims tr, table.claims td { display: block; border: 0 }
  table.claims tr { border-bottom: 1px solid var(--line); padding: .5rem 0 }
  table.claims td { padding: .15rem 0 }
  table.claims td:empty { display: none }
  table.claims td:not(:first-child)::before {
    content: attr(data-label) ': '; color: var(--soft) } }
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
        return Number.isNaN(number) ? text : number;
      };
      body.replaceChildren(...[...first].sort((a, b) => {
        const x = key(a), y = key(b);
        const order = typeof x === typeof y ? (x > y ? 1 : x < y ? -1 : 0)
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
# Colours of a figure that follow the page, light or dark.
FOLLOW = {'#000000': 'currentColor', '#ffffff': 'var(--page)',
          style.GREY: 'var(--soft)', style.PALETTE[0].lower(): 'var(--blue)'}
# Blanks at which no line ends: '5 %', 'p = .04', 'p &lt; .001'.
GLUE = re.compile(r'(?<=\d) (?=%)|(?<=\bp) (?=(?:=|&lt;) )|'
                  r'(?<=p [=<]) (?=\.)|(?<=&lt;) (?=\.)')
HEAVY = 300_000  # Characters of an SVG beyond which its data become pixels.


def document(title: str, body: str, head: str = '') -> str:
  """Returns a page as HTML.

  Args:
    title: its title, as text.
    body: HTML after the title.
    head: further HTML of its head.
  """
  name = html.escape(title)
  return ('<!doctype html><html lang="en"><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, '
          'initial-scale=1"><meta name="color-scheme" content="light dark">'
          f'{head}<title>{name}</title><style>{STYLE}</style>'
          f'<body><h1>{name}</h1>{body}<script>{SCRIPT}</script></body></html>'
          '\n')


def drawing(draw: Callable[[], style.Axes], caption: str) -> str:
  """Returns a <figure> of what draw() draws, or why there is none.

  The SVG stands in the page, so that its ink is the page's own.
  """
  try:
    ax = draw()
  # Figures raise ValueError where there is nothing to draw.
  except ValueError as error:
    return small(f'Not drawn: {str(error).removeprefix(style.NOTHING)}.')
  code = svg(ax)
  if len(code) > HEAVY:
    # Thousands of points: pixels are lighter than their paths.
    for artist in [*ax.lines, *ax.collections]:
      artist.set_rasterized(True)
    code = svg(ax)
  text = escaped(caption)
  code = code.replace('<svg ', f'<svg role="img" aria-label="{text}" ', 1)
  return (f'<figure class="drawn">{code}<figcaption>{text}</figcaption>'
          '</figure>')


def svg(ax: style.Axes) -> str:
  """Returns a figure as SVG, its letters as text, in the page's colours."""
  buffer = io.StringIO()
  # Letters stay text, to be searched and scaled. The salt gives elements the
  # same ids every time.
  with matplotlib.rc_context({'svg.fonttype': 'none',
                              'svg.hashsalt': 'audiorank'}):
    ax.figure.figure.savefig(
        buffer, format='svg', transparent=True, dpi=150,
        metadata={'Date': None, 'Creator': None})
  code = buffer.getvalue()
  # The XML header has no place within HTML.
  code = code[code.index('<svg'):]
  # Without date and version the same records give the same page.
  code = re.sub(r'<metadata>.*?</metadata>', '', code, flags=re.S)
  # The size is the page's matter; the names must not meet those of another
  # figure.
  code = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|'
                r'(<svg[^>]*?) height="[^"]*" width="[^"]*"', r'\1\2', code,
                count=1)
  own = hashlib.sha256(code.encode()).hexdigest()[:6]
  code = re.sub(r'((?:xlink:)?href="#|\bid="|url\(#)', rf'\g<1>f{own}', code)
  for color, follow in FOLLOW.items():
    code = code.replace(color, follow)
  return code


def rows(table: pd.DataFrame, classes: Sequence[str] | None = None,
         kind: str = '', link: str = '') -> str:
  """Returns an HTML table of a frame of texts.

  Args:
    table: a frame of texts.
    classes: a class per row, or None.
    kind: classes of the table: 'text' for words rather than numbers, 'sorted'
      for one that its headings sort, 'claims' for one that becomes a list on
      a phone.
    link: the column of run ids that lead to the account of their run, or ''.
  """
  if not len(table):
    return ''
  # data-label: style, and the labels of the list that a table becomes on a
  # phone.
  head = ''.join(f'<th data-label="{html.escape(str(column))}">'
                 f'{escaped(column)}</th>' for column in table.columns)
  body = []
  for i, (_, row) in enumerate(table.iterrows()):
    cells = ''.join(cell(str(column), value, column == link)
                    for column, value in row.items())
    mark = ''
    if classes:
      mark = of_class(classes[i])
    body.append(f'<tr{mark}>{cells}</tr>')
  # tabindex: the keyboard can scroll a wide table too.
  return (f'<div class="wide" tabindex="0"><table{of_class(kind)}><thead><tr>'
          f'{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>')


def of_class(name: str) -> str:
  """Returns the attribute that gives an element its class, or ''."""
  return f' class="{name}"' if name else ''


def cell(column: str, value: object, is_run: bool) -> str:
  """Returns a table's cell; a run's id is a link to its account."""
  text = escaped(value)
  if is_run:
    text = f'<a href="#run-{text}">{text}</a>'
  mark = ''
  if column == 'verdict':
    mark = of_class('verdict')
  return f'<td data-label="{html.escape(column)}"{mark}>{text}</td>'


def escaped(text: object) -> str:
  """Returns text as HTML; a number stays on the line of its sign."""
  return GLUE.sub('\N{NO-BREAK SPACE}', html.escape(str(text)))


def small(text: str) -> str:
  """Returns a paragraph of small print."""
  return f'<p class="small">{escaped(text)}</p>'


def listed(words: Sequence[str]) -> str:
  """Returns sentences as a list, nothing for none."""
  if not words:
    return ''
  return f'<ul>{"".join(f"<li>{escaped(word)}</li>" for word in words)}</ul>'
