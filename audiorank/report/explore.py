"""The panel of runs: filter by any field, compare two, see the law move.

The final report contains it, and while a sweep runs it is the page. All data
are JSON in the page; explore.js draws them, so no server is needed.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import html
import json
import math
import pathlib
import time
from typing import Any

from absl import logging
import numpy as np

from audiorank import files
from audiorank import laws
from audiorank import records
from audiorank.analysis import law as law_of
from audiorank.analysis import study
from audiorank.records import score_table
from audiorank.records import sweep as sweep_lib
from audiorank.report import html_parts

SCRIPT = pathlib.Path(__file__).with_name('explore.js')
# Columns of a run that can be axes of the figure, and their names.
NUMBERS = {'rank': 'RankMe', 'score': 'score', 'valid_loss': 'validation loss',
           'gain': 'gain over untrained', 'knn': 'kNN score',
           'params': 'encoder parameters', 'hours': 'hours of audio',
           'flops': 'training FLOPs', 'step': 'step'}
# Fields that no two runs of a sweep share, or that say where something is.
HIDDEN = ('data.world.', 'data.root', 'data.sha256')
VALUES = 12  # Values of a field up to which a list is shown, not a range.
POINTS = 40  # Of a run's curve.
BAND_DRAWS = 200  # Of the law's band: its ends are then within a few per cent.
REFRESH = 10  # Seconds between reloads of the page.
STALE = 10  # Minutes without a change after which the page says so.

Row = dict[str, Any]


def finite(value: Any) -> Any:
  """Returns a value as JSON: None for what is missing or not finite."""
  if value is None or isinstance(value, (str, bool)):
    return value
  if isinstance(value, (np.integer, int)):
    return int(value)
  value = float(value)
  if not math.isfinite(value):
    return None
  # Six digits are more than a screen shows.
  return float(f'{value:.6g}')


def run_of(row: Mapping[str, Any], history: Iterable[Mapping[str, Any]]
           ) -> Row:
  """Returns what the panel shows of a run.

  Args:
    row: of the table of runs.
    history: its rows of the table of history.
  """
  fields: Row = {'size': row['size']}
  # Tables of older versions have no config: their columns describe the run.
  if isinstance(row.get('config'), str):
    tree = study.flat(json.loads(row['config']))
    fields |= {name: field(value) for name, value in tree.items()
               if not name.startswith(HIDDEN)}
  else:
    fields |= {name: field(row[name]) for name in study.COLUMNS if name in row}
  fields |= {'seed': finite(row.get('seed')), 'state': row['state']}
  steps = sorted(history, key=lambda one: one['step'])
  if len(steps) > POINTS:
    at = np.linspace(0, len(steps) - 1, POINTS).round().astype(int)
    steps = [steps[i] for i in at]
  return {
      'id': row['run_id'], 'name': row.get('name') or row['run_id'],
      'state': row['state'], 'untrained': bool(row['untrained']),
      'steps': finite(row['steps']), 'baseline': row.get('baseline'),
      'fields': fields,
      'curve': [[finite(one['step']), finite(one['rank']),
                 finite(one.get('valid_loss'))] for one in steps],
      **{name: finite(row.get(name)) for name in NUMBERS}}


def field(value: Any) -> Any:
  """Returns the value of a config's field as a filter shows it."""
  if isinstance(value, (list, tuple)):
    return ','.join(map(str, value)) or '–'
  if isinstance(value, str) and not value:
    return '–'
  return finite(value)


def filters(runs: Sequence[Row]) -> list[Row]:
  """Returns the fields in which runs differ, with their values.

  `values` is None for a field of more than VALUES numbers: it gets a range.
  """
  names = dict.fromkeys(name for run in runs for name in run['fields'])
  out = []
  for name in names:
    values = {run['fields'].get(name) for run in runs}
    if len(values) < 2:
      continue
    numbers = all(isinstance(v, (int, float)) for v in values
                  if v is not None)
    # Numbers in their order, then texts; None stands first.
    ordered: list[Any] | None = sorted(values, key=lambda v: (
        v is not None, isinstance(v, str), v or 0))
    if numbers and len(values) > VALUES:
      ordered = None
    out.append({'name': name, 'values': ordered})
  # Of several fields that divide the runs alike (width, heads), the first is
  # enough: size stands first.
  parts: dict[tuple, Row] = {}
  for one in out:
    # The number of its value among those so far: equal for two fields that
    # divide the runs alike.
    order: dict[Any, int] = {}
    parts.setdefault(tuple(
        order.setdefault(run['fields'].get(one['name']), len(order))
        for run in runs), one)
  return list(parts.values())


def law(runs: Sequence[Row]) -> Row | None:
  """Returns the law of the scored runs with its band, or None.

  Of the runs above their untrained network; of all trained ones as long as no
  untrained network is scored.
  """
  scores = {run['id']: run['score'] for run in runs if run['untrained']}
  rows = []
  for run in runs:
    if run['untrained'] or run['score'] is None or not run['rank']:
      continue
    base = scores.get(run['baseline'])
    if base is None or run['score'] > base:
      rows.append((run['rank'], run['score']))
  if len(rows) < law_of.LEAST:
    return None
  rank_N, score_N = np.array(rows, float).T
  if np.ptp(np.log10(rank_N)) < law_of.FLAT:
    return None
  try:
    fit = laws.fit('saturating', {'rank': rank_N, 'score': score_N})
    at_M = np.geomspace(rank_N.min(), rank_N.max(), POINTS)
    y_M, low_M, high_M = fit.predict({'rank': at_M}, band='mean',
                                     draws=BAND_DRAWS)
  # Too few different values for three parameters.
  except ValueError:
    return None
  text = (f'the saturating power law through the {len(rows)} scored runs that '
          'beat their untrained network, with its 95 % band.')
  return {'x': list(map(finite, at_M)), 'y': list(map(finite, y_M)),
          'low': list(map(finite, low_M)), 'high': list(map(finite, high_M)),
          'text': text}


def panel(runs: Sequence[Row], done: bool = True) -> str:
  """Returns the panel as HTML: its data and the script that draws them."""
  gains = {run['id']: run['score'] for run in runs if run['untrained']}
  for run in runs:
    base = gains.get(run['baseline'])
    run['gain'] = None
    if not run['untrained'] and None not in (run['score'], base):
      run['gain'] = finite(run['score'] - base)
  several = filters(runs)
  listed = [one['name'] for one in several if one['values']]
  color = next((name for name in ('size', *listed) if name in listed), 'state')
  # The page of a finished sweep is the same whenever it is written.
  written = None
  if not done:
    written = int(time.time())
  tree = {
      'runs': list(runs), 'filters': several, 'color': color,
      'law': law(runs), 'done': done, 'every': REFRESH, 'stale': STALE,
      'written': written,
      'numbers': [[name, label] for name, label in NUMBERS.items()
                  if any(run[name] is not None for run in runs)]}
  # '<' within JSON would end the script element.
  text = json.dumps(tree, separators=(',', ':')).replace('<', '\\u003c')
  return (f'<script type="application/json" id="runs-data">{text}</script>'
          '<div id="explore"><p class="small">This part needs scripts.</p>'
          f'</div><script>{SCRIPT.read_text(encoding="utf-8")}</script>')


def of_tables(sweep: records.Tables) -> str:
  """Returns the panel of a sweep's tables."""
  histories: dict[str, list[Row]] = {}
  if len(sweep.history):
    columns = [name for name in ('run_id', 'step', 'rank', 'valid_loss')
               if name in sweep.history]
    for one in sweep.history[columns].to_dict('records'):
      histories.setdefault(one['run_id'], []).append(one)
  return panel([run_of(row, histories.get(row['run_id'], ()))
                for row in sweep.runs.to_dict('records')])


class LivePage:
  """report.html of a sweep that is in progress.

  Only runs whose records have changed are read again. The page is written at
  most so often that it takes a twentieth of one core.

  Args:
    root: the sweep's folder.
    title: of the page.
  """

  def __init__(self, root: files.Path, title: str):
    self.root, self.title = files.path(root), title
    self.target = self.root / 'report.html'
    self._runs: dict[str, sweep_lib.RunRecords] = {}
    self._shown: dict[str, Row] = {}  # Cells of a run, as in the panel.
    self._read: dict[str, tuple] = {}  # State and names of records when read.
    self._next = 0.  # time.monotonic() of the next page.
    self.seconds = math.nan  # CPU that the last page took.

  def show(self, states: Mapping[str, str], text: str, share: float,
           reasons: Mapping[str, str]) -> bool:
    """Writes the page if it is time to; returns whether it has.

    Args:
      states: {run_id: state}; see records.state.
      text: the progress in words, with the time left.
      share: of the work that is done.
      reasons: {run_id: why it has failed}.
    """
    if time.monotonic() < self._next:
      return False
    began = time.process_time()
    wait = 5.
    if files.is_on_bucket(self.root):
      wait = 30.
    try:
      files.write_text(self.target, self.page(states, text, share, reasons),
                       sync=False)
    # A page that cannot be written is no reason to stop a sweep.
    except (OSError, ValueError) as error:
      logging.warning('%s: not written: %s', self.target,
                      files.one_line(error))
      wait = 60.
    self.seconds = time.process_time() - began
    self._next = time.monotonic() + max(wait, 20 * self.seconds)
    return True

  def page(self, states: Mapping[str, str], text: str, share: float,
           reasons: Mapping[str, str]) -> str:
    """Returns the page as HTML; arguments as for `show`."""
    self.read(states)
    counts: dict[str, int] = {}
    for state in states.values():
      counts[state] = counts.get(state, 0) + 1
    each = ', '.join(f'{n} {state}' for state, n in sorted(counts.items()))
    failures = [f'{run_id}: {why}' for run_id, why in reasons.items()]
    if failures:
      failures = ['<h2>Failed runs</h2>', html_parts.listed(failures)]
    runs = list(self._shown.values())
    body = '<p class="small">No run has a record yet.</p>'
    if runs:
      body = panel(runs, done=False)
    clock = time.strftime('%Y-%m-%d %H:%M:%S %Z')
    head = (f'<div class="lead"><p><progress max="1" value="{share:.4f}">'
            f'</progress> {html.escape(text)}</p><p>{html.escape(each)}</p>'
            f'</div><p class="small">Written at {clock}; the page reloads '
            f'itself every {REFRESH} s. The full report replaces it when the '
            'sweep ends.</p><p class="warn" id="stale" hidden></p>')
    # Without scripts the page is still reloaded.
    reload = (f'<noscript><meta http-equiv="refresh" content="{REFRESH}">'
              '</noscript>')
    if not runs:
      reload = f'<meta http-equiv="refresh" content="{REFRESH}">'
    return html_parts.document(self.title, head + ''.join(failures) + body,
                               reload)

  def read(self, states: Mapping[str, str]) -> None:
    """Reads the runs that are new or have changed."""
    # Runs that nobody has begun have no records; done ones no further.
    open_runs = [run_id for run_id, state in states.items()
                 if state != 'new' and self._read.get(run_id, ('',))[0]
                 not in ('done', 'failed')]
    listings = files.mapped(
        lambda run_id: files.names(self.root / run_id / 'records'), open_runs,
        self.root)
    changed = []
    for run_id, names in zip(open_runs, listings):
      now = states[run_id], frozenset(names)
      if self._read.get(run_id) != now:
        self._read[run_id] = now
        changed.append(run_id)
    outcomes = files.mapped(self._read_one, changed, self.root)
    for run_id, one in zip(changed, outcomes):
      if one is not None:
        self._runs[run_id] = one
        self._shown[run_id] = cells(one)
    # Names tell runs apart, so a new run may change those of others. So may an
    # untrained network: it stands for those that are equal to it.
    if changed:
      sweep_lib.name_baselines(list(self._runs.values()))
      sweep_lib.name_runs([one.row for one in self._runs.values()])
      for run_id, one in self._runs.items():
        self._shown[run_id].update(name=one.row['name'],
                                   baseline=one.row['baseline'])
    for run_id, shown in self._shown.items():
      shown['state'] = shown['fields']['state'] = states.get(run_id,
                                                             shown['state'])

  def _read_one(self, run_id: str) -> sweep_lib.RunRecords | None:
    """Returns the records of a run, or None if they are damaged."""
    try:
      return sweep_lib.read_run(self.root / run_id)
    # A damaged run must not hide the others; the report at the end names it.
    except (ValueError, OSError):
      return None


def cells(one: sweep_lib.RunRecords) -> Row:
  """Returns what the panel shows of a run, from its records."""
  last = max(one.history, key=lambda r: r['step'], default=one.row)
  means = score_table.means(score_table.newest(one.scores), {})
  return run_of({**one.row, **last, **means, 'config': one.config,
                 'name': one.row.get('name')}, one.history)
