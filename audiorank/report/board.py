"""A board of encoders: one sortable page from records of launch.evaluate.

And foreign points in a sweep's report: their RankMe and score beside the runs,
with what the sweep's law says about them.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import files
from audiorank import laws
from audiorank.laws import table as law_table
from audiorank.report import html_parts
from audiorank.report import numbers

Record = Mapping[str, Any]  # Of launch.evaluate.
COLUMNS = ('name', 'rank', 'score')  # Of a table of points.


class Point(NamedTuple):
  """An encoder of others in a sweep's figure."""
  name: str
  rank: float
  low: float  # Of RankMe's interval, NaN if unknown.
  high: float
  score: float  # Mean over tasks.
  tasks: tuple[str, ...]  # Their names, () if unknown.
  protocol: str
  # The clips of RankMe: their number, seconds, and the digest of their corpus.
  clips: float = math.nan  # NaN and '' if unknown.
  seconds: float = math.nan
  corpus: str = ''


# --- Records ---


def read(paths: Iterable[files.Path]) -> list[Record]:
  """Returns the records of launch.evaluate in files and folders.

  Raises:
    FileNotFoundError, ValueError: no such file, or no record; names it.
  """
  out = []
  for path in map(files.path, paths):
    if path.is_dir():
      # Sorted, as file systems list in different orders.
      inside = sorted(p for p in files.walk(path) if p.suffix == '.json')
      if not inside:
        raise FileNotFoundError(f'{path}: no .json in it, expected records of '
                                'launch.evaluate')
      out += [record_of(p) for p in inside]
    else:
      out.append(record_of(path))
  return out


def record_of(path: pathlib.Path) -> Record:
  """Returns one record of launch.evaluate.

  Raises:
    FileNotFoundError, ValueError: there is none; names the file.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  try:
    record = files.read_json(path)
  except ValueError as error:
    raise ValueError(f'{path}: no JSON: {error}') from None
  # Every record of launch.evaluate has versions; other JSON has not.
  if not isinstance(record, dict) or 'versions' not in record or not (
      'rank' in record or scores(record)):
    raise ValueError(f'{path}: no record of launch.evaluate, which has '
                     'versions, and a rank or the scores of tasks')
  return record


def scores(record: Record) -> dict[str, Record]:
  """Returns {task: its record}, without those of features."""
  # Features are stored under TASK.FEATURES, so their key is not the task's.
  return {name: value for name, value in record.items()
          if isinstance(value, dict) and 'task_sha256' in value
          and value['task'] == name}


def name_of(record: Record) -> str:
  """Returns the name of a record's encoder."""
  encoder = record.get('encoder', {})
  # A model has a checkpoint or a module; features and files of embeddings have
  # neither.
  name = encoder.get('checkpoint') or encoder.get('module')
  if name is None:
    name = encoder.get('features') or record.get('embeddings', {}).get('file')
  step = encoder.get('step')
  if step is not None:
    return f'{name} at {step}'
  return str(name)


# --- The board ---


def table(records: Sequence[Record]) -> pd.DataFrame:
  """Returns one row of texts for every encoder, task and layer.

  And for every encoder and layer a row of the mean over its tasks, where there
  are several of one protocol and measure between 0 and 1.
  """
  out = []
  for record in records:
    # As text: block numbers and 'final' are keys of the same dict.
    ranks = {str(f['layer']): f['rank'] for f in layers_of(record)}
    about = record.get('encoder', {})
    # By layer and protocol: scores of two protocols have no common mean.
    sums: dict[tuple[str, str], list[float]] = {}
    for task, one in scores(record).items():
      for row in score_rows(one):
        rank = ranks.get(row['layer'], {})
        sums.setdefault((row['layer'], row['protocol']), []).append(
            row.pop('value'))
        out.append({'encoder': name_of(record), 'task': task, **row,
                    **described(rank, about)})
    for (layer, protocol), values in sums.items():
      if len(values) > 1:
        out.append(mean_row(
            record, f'mean of {len(values)} tasks', layer, protocol,
            {'score': float(np.mean(values))}, ranks.get(layer, {})))
    if 'xares_mean' in record:
      mean = record['xares_mean']
      layer, protocol = next(iter(sums))
      out.append(mean_row(
          record, f'mean of {mean["tasks"]} tasks, weighted as in X-ARES',
          'final', protocol, mean, ranks.get('final', {})))
    # A record of --corpus alone has RankMe of its layers, but no tasks.
    if not sums:
      out += [{'encoder': name_of(record), 'task': '', 'layer': layer,
               'score': '', 'interval': '', 'measure': '', 'clips': '',
               'protocol': '', **described(rank, about)}
              for layer, rank in ranks.items()]
  return pd.DataFrame(out).fillna('')


def mean_row(record: Record, task: str, layer: str, protocol: str,
             mean: Mapping[str, Any], rank: Record) -> dict[str, Any]:
  """Returns the row of a mean over tasks.

  Args:
    record: of the encoder.
    task: what the row calls the mean.
    layer, protocol: of the scores.
    mean: score and, if known, low and high.
    rank: RankMe of the layer.
  """
  return {'encoder': name_of(record), 'task': task, 'layer': layer,
          'score': number(mean['score']),
          'interval': between(mean.get('low'), mean.get('high')),
          'measure': 'mean', 'clips': '', 'protocol': protocol,
          **described(rank, record.get('encoder', {}))}


def layers_of(record: Record) -> list[Record]:
  """Returns the rank fields of every layer of a record, [] without any."""
  rank = record.get('rank')
  if not rank:
    return []
  return rank.get('layers') or [{'layer': 'final', **rank}]


def score_rows(one: Record) -> list[dict[str, Any]]:
  """Returns a row for every layer of a task's record."""
  result = one['result']
  # A record of one layer has its score in the result alone.
  layers = one.get('layers') or [{
      'layer': 'final', 'score': result['score'], 'low': result['low'],
      'high': result['high']}]
  best = one.get('best', {}).get('layer')
  out = []
  for row in layers:
    mark = ''
    if 'layers' in one and row['layer'] == best:
      mark = ' (best on validation)'
    value = row['score']
    if value is None:
      value = math.nan
    out.append({'layer': str(row['layer']), 'score': number(value),
                'interval': between(row['low'], row['high']),
                'measure': one['metric'] + mark, 'clips': result['clips'],
                'protocol': result['protocol'], 'value': value})
  return out


def described(rank: Record, about: Record) -> dict[str, Any]:
  """Returns the columns of a row that do not depend on the task."""
  return {'RankMe': number(rank.get('value'), 1),
          'RankMe, interval': between(rank.get('low'), rank.get('high'), 1),
          'RankMe clips': rank.get('n', ''), 'width': about.get('width', ''),
          'parameters': about.get('parameters', ''),
          'licence': about.get('licence') or '',
          # 12 digits of a commit's hash identify it.
          'revision': (about.get('revision') or '')[:12]}


def number(value: float | None, digits: int = 3) -> str:
  """Returns a number as text, '' if it is not known."""
  return numbers.number(value, f'{{:.{digits}f}}', missing='')


def between(low: float | None, high: float | None, digits: int = 3) -> str:
  """Returns an interval as text, '' if it is not known."""
  if not number(low) or not number(high):
    return ''
  return f'{number(low, digits)} to {number(high, digits)}'


def page(records: Sequence[Record]) -> str:
  """Returns the board as one HTML text."""
  rows = table(records)
  encoders = rows['encoder'].nunique()
  protocols = sorted(set(rows['protocol']) - {''})
  lead = [f'{encoders} encoders. A click on a heading sorts. Intervals are '
          '95 %; best on validation: the layer that the validation clips '
          'choose, with its score on the test clips.']
  if len(protocols) > 1:
    lead.append(f'Scores of different protocols ({", ".join(protocols)}) '
                'cannot be compared.')
  sizes = sorted({str(n) for n in rows['RankMe clips']} - {''})
  if len(sizes) > 1:
    lead.append(f'RankMe grows with the clips ({", ".join(sizes)}): compare '
                'rows of equal numbers.')
  # One file with its style and script, so that it can be sent alone.
  return ('<!doctype html><html lang="en"><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, '
          'initial-scale=1"><meta name="color-scheme" content="light dark">'
          f'<title>Encoders</title><style>{html_parts.STYLE}</style>'
          '<body><h1>Encoders</h1>'
          f'<div class="lead">{"".join(map(html_parts.small, lead))}</div>'
          f'{html_parts.rows(rows, kind="sorted")}'
          f'<script>{html_parts.SCRIPT}</script></body></html>\n')


def write(paths: Iterable[files.Path], out: files.Path) -> pathlib.Path:
  """Writes the board of some records as an HTML file; returns its path.

  Raises:
    FileNotFoundError, ValueError: as `read`.
  """
  text, path = page(read(paths)), files.path(out)
  files.write_text(path, text)
  return path


# --- Points in a sweep's report ---


def points(paths: Iterable[files.Path]) -> list[Point]:
  """Returns the points of records of launch.evaluate and of tables.

  Args:
    paths: .json records with a rank and scores, folders of them, or .csv and
      .parquet tables with the columns name, rank and score (and, if known, low
      and high of the rank, and clips and seconds of its sample).

  Raises:
    FileNotFoundError, ValueError: a file without a rank and a score; names it.
  """
  out = []
  for path in map(files.path, paths):
    if path.suffix in ('.csv', '.parquet'):
      out += points_of_table(path)
      continue
    for record in read([path]):
      if 'rank' not in record or not scores(record):
        raise ValueError(f'{path}: a point needs a rank and a score: run '
                         'launch.evaluate with --corpus and --tasks')
      # Raw, not centred: the law of the sweep is a law of the same.
      rank, of_tasks = record['rank']['rank'], scores(record)
      values = [one['result']['score'] for one in of_tasks.values()]
      if rank['value'] is None or None in values:
        raise ValueError(f'{path}: its rank or a score is undefined')
      out.append(Point(
          name_of(record), rank['value'], rank['low'], rank['high'],
          float(np.mean(values)), tuple(sorted(of_tasks)),
          ', '.join(sorted({one['result']['protocol']
                            for one in of_tasks.values()})),
          rank.get('n', math.nan), *corpus_of(record)))
  return out


def corpus_of(record: Record) -> tuple[float, str]:
  """Returns (seconds of a clip, digest) of the corpus of a record's RankMe."""
  corpus = record.get('corpus', {})
  return corpus.get('seconds', math.nan), corpus.get('sha256', '')


def points_of_table(path: pathlib.Path) -> list[Point]:
  """Returns the points of a .csv or .parquet table; see `points`."""
  data = law_table.read(path)
  missing = [name for name in COLUMNS if name not in data]
  if missing:
    raise ValueError(f'{path}: no column {missing[0]!r}, expected '
                     f'{", ".join(COLUMNS)}')
  out = []
  for _, row in data.iterrows():
    rank, score = float(row['rank']), float(row['score'])
    # Written so that NaN, for which every comparison is false, fails too.
    if not (rank > 0 and math.isfinite(score)):
      raise ValueError(f'{path}: {row["name"]}: rank {rank:g} and score '
                       f'{score:g}, expected numbers, the rank above 0')
    out.append(Point(str(row['name']), rank, float(row.get('low', math.nan)),
                     float(row.get('high', math.nan)), score, (), '',
                     float(row.get('clips', math.nan)),
                     float(row.get('seconds', math.nan))))
  return out


def placed(own: Sequence[Point], fit: laws.Fit | None, runs: pd.DataFrame,
           tasks: pd.DataFrame) -> pd.DataFrame:
  """Returns a row of texts for every point: what the law says about it.

  Args:
    own: the points.
    fit: the sweep's law from rank to score, or None.
    runs: the sweep's trained runs, for the range of RankMe.
    tasks: the sweep's table of tasks, to say what differs.
  """
  out = []
  ranks = runs['rank'].astype(float)
  for point in own:
    row = {'encoder': point.name, 'RankMe': number(point.rank, 1),
           'RankMe, interval': between(point.low, point.high, 1),
           'score': number(point.score), 'law': '', 'law, interval': '',
           'on the law': 'no law is fitted'}
    if fit is not None:
      # 'new': the interval of a further run with its noise, which is wider
      # than that of the curve.
      value, low, high = (float(x[0]) for x in fit.predict(
          {fit.x[0]: np.array([point.rank])}, band='new'))
      row.update({'law': number(value), 'law, interval': between(low, high),
                  'on the law': verdict(point, low, high)})
      # Outside the range of the runs, the law is an extrapolation.
      if not ranks.min() <= point.rank <= ranks.max():
        row['on the law'] += ', beyond the runs'
    differs = [*other_sample(point, runs), *other_score(point, tasks)]
    if differs and fit is not None:
      row['on the law'] = 'not comparable'
    row['compared'] = '; '.join(differs) or same(point, tasks)
    out.append(row)
  return pd.DataFrame(out)


def verdict(point: Point, low: float, high: float) -> str:
  """Returns whether a point lies within the law's interval of a new run."""
  if math.isnan(low) or math.isnan(high):
    return 'inconclusive'
  if low <= point.score <= high:
    return 'yes'
  if point.score > high:
    return 'no, above'
  return 'no, below'


def other_sample(point: Point, runs: pd.DataFrame) -> list[str]:
  """Returns how the clips of a point's RankMe differ from those of the runs.

  RankMe grows with the number of clips and depends on their length and content.
  What the point does not state is not compared.
  """
  theirs = samples_of(runs)
  out = []
  if theirs['clips'] and not math.isnan(point.clips) and (
      point.clips not in theirs['clips']):
    out.append(f'RankMe of {point.clips:,.0f} clips, the runs of '
               f'{listed(theirs["clips"])}')
  # A thousandth of a second is rounding.
  if theirs['seconds'] and not math.isnan(point.seconds) and all(
      abs(point.seconds - x) > 1e-3 for x in theirs['seconds']):
    out.append(f'RankMe of clips of {point.seconds:g} s, the runs of '
               f'{listed(theirs["seconds"])} s')
  if theirs['corpus'] and point.corpus and (
      point.corpus not in theirs['corpus']):
    out.append('RankMe of another corpus')
  return out


def samples_of(runs: pd.DataFrame) -> dict[str, set[Any]]:
  """Returns {clips, seconds, corpus: values} of the RankMe of runs."""
  out: dict[str, set[Any]] = {'clips': set(), 'seconds': set(),
                              'corpus': set()}
  if 'clips' in runs:
    out['clips'] = set(runs['clips'].dropna().astype(int))
  for text in runs.get('config', pd.Series(dtype=object)).dropna():
    config = json.loads(text)
    out['seconds'].add(config.get('monitor', {}).get('crop_seconds'))
    out['corpus'].add(config.get('data', {}).get('sha256'))
  # Tables of old sweeps, and corpora without a digest, say nothing.
  return {name: values - {None, '', 0} for name, values in out.items()}


def listed(values: Iterable[float]) -> str:
  """Returns numbers as text, in order."""
  return ', '.join(f'{value:,g}' for value in sorted(values))


def other_score(point: Point, tasks: pd.DataFrame) -> list[str]:
  """Returns how the score of a point differs from those of the runs."""
  # Tables of points do not name their tasks.
  if not point.tasks or not len(tasks):
    return []
  out = []
  if set(point.tasks) != set(tasks['task']):
    out.append('other tasks')
  if set(point.protocol.split(', ')) != set(tasks['protocol'].dropna()):
    out.append(f'another protocol ({point.protocol})')
  return out


def same(point: Point, tasks: pd.DataFrame) -> str:
  """Returns what is known to be the same of a point that differs in nothing."""
  known = []
  if point.tasks and len(tasks):
    known.append('same tasks and protocol')
  else:
    known.append('tasks unknown')
  if point.corpus:
    known.append('same clips')
  else:
    known.append('clips unknown')
  return ', '.join(known)
