"""Damaged files: refused or left out by name, or read as if they were whole.

Every mutation is made in a copy, by a generator that is seeded by its number.
What then comes out must be one of these: the numbers of the whole file; one
line that names the file; or, of a sweep, a table without that run and a warning
that names it. Other numbers are allowed only where another reader finds them
in the file as well (`stated`), such as a digit that changed in a text.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import types
import warnings

from absl import logging
import jax
import numpy as np
import optax
import pandas as pd
from pyarrow import parquet as pq
import pytest
import safetensors.numpy
import soundfile

import audiorank
from audiorank import baselines
from audiorank import checkpoint
from audiorank import prepare
from audiorank import records
from audiorank import validate
from audiorank.export import pretrained
from audiorank.hear import tasks as task_lib
from audiorank.laws import table as law_table
from audiorank.rankme import files as embedding_files
from audiorank.rankme import record as rank_record
from tests import hear_tasks_test
from tests import score_table_test
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 20  # Seconds that a reader may take.
FEW, MANY = 6, 150  # Mutations of each kind, by default and with --slow.
REFUSED = (ValueError, OSError)  # What the commands print as one line.
ODD = (None, [], {}, '', 'text', True, -1, 0, 10 ** 400, -1e308, math.nan,
       math.inf, [[[]]], [None], {'a': {}}, '\ud800', '\r\n\t', 1.5)
DEEP = 100_000  # Brackets: more than Python's stack.


class TooSlow(BaseException):
  """A reader did not end in time. No `except Exception` catches it."""


@contextlib.contextmanager
def limited(seconds):
  """Raises TooSlow if the block takes longer."""
  def stop(*_):
    raise TooSlow(f'{seconds} s')
  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- Mutations ---


def bytes_mutated(rng, data):
  """Returns damaged bytes: flipped, cut off, overwritten, repeated."""
  data, n = bytearray(data), max(1, len(data))
  at = rng.randrange(n)
  how = rng.randrange(8)
  if how == 0:
    return b''
  if how == 1:
    return bytes(data[:at])
  if how == 2:
    data[at:at + 16] = bytes(min(16, n - at))
  elif how == 3:
    data[at:at] = rng.randbytes(rng.choice((1, 7, 64)))
  elif how == 4:
    data += data[at:]
  elif how == 5:
    data[:min(n, 8)] = rng.randbytes(min(n, 8))
  else:
    data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
  return bytes(data)


def places(tree, path=()):
  """Yields the path of every value in a JSON tree."""
  items = ()
  if isinstance(tree, dict):
    items = tree.items()
  elif isinstance(tree, list):
    items = enumerate(tree)
  for key, value in items:
    yield (*path, key)
    yield from places(value, (*path, key))


def json_mutated(rng, data):
  """Returns JSON of another shape: types, numbers, keys, depth."""
  tree = json.loads(data)
  how = rng.randrange(10)
  if how == 0:
    return b'[' * DEEP
  if how == 1:
    return b'{"a":' * DEEP + b'1' + b'}' * DEEP
  if how == 2:
    return json.dumps(rng.choice(ODD)).encode()
  every = list(places(tree))
  if not every:
    return b''
  *parents, last = rng.choice(every)
  node = tree
  for key in parents:
    node = node[key]
  if how == 3:
    del node[last]
  elif how == 4 and isinstance(node, dict):
    node[str(last) + 'x'] = node.pop(last)
  elif how == 5 and isinstance(node, list):
    node.append(node[last])
  elif how == 6:
    node[last] = [node[last]]
  elif how == 7:
    node[last] = str(node[last])
  else:
    node[last] = rng.choice(ODD)
  return json.dumps(tree).encode()


def twice_keyed(rng, data):
  """Returns JSON in which an object has one of its keys twice."""
  tree = json.loads(data)
  if not isinstance(tree, dict) or not tree:
    return b'{"a": 1, "a": 2}'
  key = rng.choice(list(tree))
  other = rng.choice(list(tree.values()))
  text = json.dumps(tree)
  return (text[:-1] + f', {json.dumps(key)}: {json.dumps(other)}}}').encode()


def lines_mutated(rng, data):
  """Returns lines of which one is damaged, doubled, moved or gone."""
  lines = data.splitlines(keepends=True)
  at = rng.randrange(len(lines))
  how = rng.randrange(8)
  if how == 0:
    lines.insert(at, lines[at])
  elif how == 1:
    lines[at] = lines[at][:rng.randrange(len(lines[at]))]
  elif how == 2:
    lines.insert(at, rng.choice((b'\n', b'\r\n', b'\0' * 512 + b'\n', b'5\n',
                                 b'[1, 2]\n', b'null\n', b'\xff\xfe\n',
                                 b'[' * DEEP + b'\n')))
  elif how == 3:
    lines[at] = lines[at].rstrip(b'\n')
  elif how == 4:
    lines[at] = lines[at].replace(b'\n', b'\r\n')
  else:
    try:
      lines[at] = json_mutated(rng, lines[at]) + b'\n'
    except ValueError:
      lines[at] = bytes_mutated(rng, lines[at])
  return b''.join(lines)


def mutated(rng, path):
  """Returns other bytes for a file, by its kind."""
  data = path.read_bytes()
  kinds = [bytes_mutated]
  if path.suffix == '.json':
    kinds += [json_mutated, json_mutated, twice_keyed]
  elif path.suffix in ('.jsonl', '.csv'):
    kinds += [lines_mutated, lines_mutated]
  return rng.choice(kinds)(rng, data)


# --- What is read ---


class Subject(types.SimpleNamespace):
  """Whole files, and how they are read.

  Attributes:
    folder: of the whole files.
    files: those to mutate, relative to it.
    read: folder -> {name of a part: its numbers}.
    stated: (folder, name, numbers) -> whether another reader finds these
      numbers in the file too.
    part_of: file -> the parts that may be left out for it, with a warning
      that names it; by default none.
    instead: results that may come in place of the whole one, with a warning.
  """

  def __init__(self, **fields):
    super().__init__(**{'stated': lambda *_: False, 'instead': (),
                        'part_of': lambda file: (), **fields})


def same(a, b):
  """Returns whether two results are equal, NaN to NaN."""
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
  if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
    return a.shape == b.shape and np.array_equal(
        a, b, equal_nan=a.dtype.kind == 'f')
  return bool(a == b or (a != a and b != b))


def in_folder(folder):
  """Returns the names of the files in a folder, relative to it."""
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*')
                if p.is_file() or p.is_symlink())


def z_of(number=0):
  """Returns embeddings z_ND of a decaying spectrum."""
  rng = np.random.default_rng(number)
  return (rng.standard_normal((60, 6)) * np.arange(1, 7) ** -.7).astype('f4')


def sweep(folder):
  """Writes two runs and their baseline, with records of every kind."""
  configs = [tiny.config('corpus', **{'eval.protocol': 'logistic', 'seed': i})
             for i in (0, 1)]
  hit_N = np.random.default_rng(1).random(score_table_test.CLIPS) < .5
  for i, config in enumerate([*configs, baselines.untrained(configs[0])]):
    workdir, last = folder / records.run_id(config), config.train.steps
    records.open_run(workdir, config)
    records.write(workdir, 'run', 0, {
        'parameters': {'encoder': 30_000, 'decoder': 9_000}, 'hours': 1.5,
        'flops_per_clip': {'total': 10, 'encoder': 6}})
    for step in {0, last}:
      records.write(workdir, 'monitor', step, {
          **rank_record.rank_fields(z_of(i + step), np.arange(60) // 4),
          'valid_loss': 1.25, 'layers': [], 'alarms': []})
    records.write(workdir, 'hear.one', last,
                  score_table_test.record('one', hit_N.astype(float)))
    rows = [{'step': step, 'loss': 1.5 / step, 'clips_per_second': None}
            for step in (1, 2, 3)]
    rows.append({'step': 3, 'rank': 4.5, 'alarms': []})
    (workdir / 'metrics.jsonl').write_text(''.join(map(records.line, rows)))
    records.write_json(workdir / 'DONE', {})
  records.write_json(folder / 'sweep.json', {
      'title': 'One', 'runs': [f.name for f in records.run_folders(folder)]})
  names = in_folder(folder)
  return Subject(
      files=[n for n in names if '/records/' in n] * 2
      + [n for n in names if n.endswith('config.json')] + ['sweep.json'],
      read=read_tables, part_of=lambda file: [
          n.split('/')[0] for n in names
          if file in ('sweep.json', n)],
      stated=config_states)


def read_tables(folder):
  """Returns {run: its rows of every table}."""
  out = {}
  for name, table in records.tables(folder)._asdict().items():
    for row in table.to_dict('records'):
      out.setdefault(row['run_id'], {}).setdefault(name, []).append(row)
  return out


def config_states(folder, run_id, rows):
  """Whether a run's config.json says what its rows say.

  It is a text, so that another title or task is no damage that can be seen.
  What is trained is part of the run's id.
  """
  try:
    config = records.load_config(folder / run_id)
  except REFUSED:
    return False
  if records.run_id(config) != run_id:
    return False
  whole = all(row['experiment'] == config.experiment
              for table in rows.values() for row in table)
  # Scores by other settings than the config's are left out.
  settings = records.plain(config.eval)
  mine = {k: settings[k] for k in score_table_test.SETTINGS}
  return whole and ('tasks' in rows) == (mine == score_table_test.SETTINGS)


def curves(folder):
  """A sweep, of which the lines of metrics.jsonl are mutated."""
  return Subject(**{**vars(sweep(folder)), 'stated': lines_state,
                    'part_of': lambda file: (), 'read': read_curves,
                    'files': [n for n in in_folder(folder)
                              if n.endswith('.jsonl')]})


def read_curves(folder):
  """Returns {run: its rows of curves.parquet}."""
  records.collect(folder)
  table = records.curves(folder)
  out = {f.name: [] for f in records.run_folders(folder)}
  for row in table.to_dict('records'):
    out[row.pop('run_id')].append(
        {k: v for k, v in row.items() if v == v and v is not None})
  return out


def lines_state(folder, run_id, rows):
  """Whether rows are all that a plain reader finds in the whole lines."""
  stated = []
  for line in (folder / run_id / 'metrics.jsonl').read_bytes().split(
      b'\n')[:-1]:  # What has no end was not written whole.
    try:
      row = json.loads(line, parse_constant=lambda text: 'not JSON')
    except (ValueError, RecursionError):
      continue
    if not isinstance(row, dict) or type(row.get('step')) is not int:
      continue
    texts = {k: row.pop(k) for k in ('alarms', 'why', 'clips') if k in row}
    del texts
    if all(v is None or type(v) in (int, float) and abs(v) < 1e300
           for v in row.values()):
      stated.append({k: v for k, v in row.items() if v is not None})
  return same(rows, stated)


def task(folder):
  """A scene task with clips."""
  files = {s: {f'{s}{i}.wav': ['abc', 'xyz'][i % 2:][:1] for i in range(6)}
           for s in ('train', 'valid', 'test')}
  place = hear_tasks_test.write(folder / 'toy-v1-full', files, ['abc', 'xyz'],
                                sample_duration=.01)
  (place / 'provenance.csv').write_text('file,group\n' + ''.join(
      f'{name},kit{i // 2}\n' for split in files.values()
      for i, name in enumerate(split)))
  names = in_folder(folder)
  return Subject(files=[n for n in names if n.endswith(('.json', '.csv'))] * 6
                 + [n for n in names if n.endswith('.wav')],
                 read=read_task, stated=task_states)


def events(folder):
  """An event task without clips."""
  files = {f'fold{k}': {f'{k}{i}.wav': [
      {'label': ('abc', 'xyz')[i % 2], 'start': 10. * i, 'end': 10. * i + 9}]
                        for i in range(4)} for k in range(3)}
  hear_tasks_test.write(folder / 'toy-v1-full', files, ['abc', 'xyz'],
                        embedding_type='event', prediction_type='multilabel',
                        evaluation=['event_onset_200ms_fms'],
                        sample_duration=1.)
  return Subject(files=[n for n in in_folder(folder)
                        if n.endswith(('.json', '.csv'))],
                 read=read_task, stated=task_states)


def read_task(folder):
  """Returns {split: labels, clips and groups}, and the metadata used."""
  read = validate.task(folder / 'toy-v1-full')
  out = {split: [read.files[split], read.targets[split],
                 dict(task_lib.audio(read, split)),
                 (read.groups or {}).get(split)] for split in read.splits}
  return {**out, 'metadata': [read.sample_duration, read.evaluation,
                              read.prediction_type, read.labels]}


def task_states(folder, name, part):
  """Whether a plain reader finds what `read_task` returns of a part."""
  del part
  place = folder / 'toy-v1-full'
  metadata = json.loads((place / task_lib.METADATA).read_text())
  if name == 'metadata':
    # A measure or a duration that is as good as the one before.
    seconds = metadata['sample_duration']
    return seconds is None or (type(seconds) in (int, float)
                               and 0 < seconds < 1e6)
  entries = json.loads((place / f'{name}.json').read_text())
  for file, labels in entries.items():
    for label in labels:
      if isinstance(label, dict):
        if not 0 <= label['start'] <= label['end'] < 1e300:
          return False
        label = label['label']
      if label not in ('abc', 'xyz'):
        return False
    clip = place / '16000' / name / file
    if clip.exists() and len(soundfile.read(clip)[0]) != 160:
      return False
  return True


ARRAYS = {
    'npy': lambda path, z_ND: np.save(path, z_ND),
    'npz': lambda path, z_ND: np.savez(path, z=z_ND, id=np.arange(len(z_ND))),
    'parquet': lambda path, z_ND: pd.DataFrame(
        z_ND, columns=[f'd{i}' for i in range(6)]).to_parquet(path),
    'lists.parquet': lambda path, z_ND: pd.DataFrame(
        {'z': list(z_ND), 'id': range(len(z_ND))}).to_parquet(path),
    'safetensors': lambda path, z_ND: safetensors.numpy.save_file(
        {'z': z_ND}, path)}


def arrays(folder):
  """Files of embeddings."""
  for ending, write in ARRAYS.items():
    write(folder / f'z.{ending}', z_of())
  return Subject(files=in_folder(folder), stated=array_states,
                 read=lambda place: {
                     name: embedding_files.file_rank(place / name)
                     for name in in_folder(place)})


def another_array(path):
  """Returns the embeddings in a file as its own library reads them."""
  if path.suffix == '.npy':
    return np.load(path, allow_pickle=False)
  if path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as file:
      return file['z']
  if path.suffix == '.safetensors':
    return safetensors.numpy.load_file(path)['z']
  if path.name == 'z.lists.parquet':
    return np.stack(pd.read_parquet(path, columns=['z'])['z'])
  return pd.read_parquet(path).to_numpy()


def array_states(folder, name, fields):
  """Whether another reader's array has this RankMe, by another algorithm."""
  z_ND = another_array(folder / name).astype(np.float64)
  s_K = np.linalg.svd(z_ND, compute_uv=False)
  p_K = s_K / s_K.sum() + 1e-7
  rank = math.exp(-(p_K * np.log(p_K)).sum())
  value = fields['rank']['value']
  return z_ND.shape == (fields['n'], fields['width']) and (
      value is None or value == pytest.approx(rank, rel=1e-4))


def tables(folder):
  """Tables of runs for a law."""
  rng = np.random.default_rng(0)
  table = pd.DataFrame({'rank': rng.random(12), 'score': rng.random(12)})
  table.to_csv(folder / 'runs.csv', index=False)
  table.to_parquet(folder / 'runs.parquet')
  return Subject(files=in_folder(folder), stated=table_states, read=read_csvs)


def read_csvs(folder):
  """Returns {file: {column: numbers}}, as a law takes them."""
  out = {}
  for name in in_folder(folder):
    data = law_table.read(folder / name)
    try:
      out[name] = {c: law_table.column(data, c) for c in ('rank', 'score')}
    except ValueError as error:  # It names column and row.
      raise ValueError(f'{folder / name}: {error}') from None
  return out


def table_states(folder, name, columns):
  """Whether the csv module finds the same numbers, repeated rows apart."""
  if name.endswith('.parquet'):
    read = pq.read_table(folder / name).to_pandas()
    rows = list(zip(read['rank'], read['score']))
  else:
    with open(folder / name, newline='') as file:
      rows = [(float(row['rank']), float(row['score']))
              for row in csv.DictReader(file)]
  return same([tuple(row) for row in zip(*columns.values())],
              list(dict.fromkeys(rows)))


def checkpoints(folder):
  """A run's folder with checkpoints of two steps."""
  config = tiny.config('corpus')
  (folder / 'checkpoints').mkdir(parents=True)
  records.write_json(folder / 'config.json', records.plain(config))
  with checkpoint.open_manager(folder / 'checkpoints', 1, 1) as manager:
    for step in (1, 2):
      part = {'w': jax.device_put(np.full(3, step, np.float32))}
      adam = optax.ScaleByAdamState(np.int32(step), part, part)
      checkpoint.save(manager, types.SimpleNamespace(
          step=step, params=part, batch_stats={}, opt_state=(adam,)), config)
    checkpoint.wait(manager)
  checkpoint.seal(folder / 'checkpoints')
  names = [n for n in in_folder(folder) if n.startswith('checkpoints/')]
  whole = read_checkpoint(folder)
  first = read_checkpoint(folder / 'checkpoints' / '1')
  return Subject(files=names, read=read_checkpoint, instead=[
      {**whole, 'resumed': 1}, {**first, 'resumed': 1}, first,
      {**whole, 'resumed': 2}, {**whole, 'resumed': None}])


def read_checkpoint(folder):
  """Returns the weights, and the step at which the run would resume."""
  config, params = checkpoint.load(folder)
  out = {'width': config.model.width, 'w': params['params']['w'], 'resumed': 2}
  if (folder / 'checkpoints').is_dir():
    out['resumed'] = checkpoint.newest(folder / 'checkpoints')
  return out


RELEASED = ('width', 'depth', 'heads', 'mlp_ratio', 'dtype', 'frontend')


def released(folder):
  """A released model, of which the descriptions are mutated."""
  audiorank.load(records.SAMPLE / 'model').save_pretrained(folder / 'model')
  names = [pretrained.CONFIG] * 3 + [pretrained.FRONT_END]
  return Subject(files=[f'model/{name}' for name in names],
                 read=read_released, stated=released_states)


def read_released(folder):
  """Returns what the encoder of a released model is, and its weights."""
  model = audiorank.load(folder / 'model')
  return {'model': {field: model.config.model[field] for field in RELEASED},
          'weights': jax.tree.leaves(model.params)}


def released_states(folder, name, fields):
  """Whether config.json has these fields, or none in their place."""
  tree = json.loads((folder / 'model' / pretrained.CONFIG).read_text())
  ours = tree['audiorank']['model']
  return name == 'model' and all(
      same(ours.get(field, value), value) for field, value in fields.items())


def tars(folder):
  """Archives of sounds, plain and compressed."""
  for name, mode in (('a.tar', 'w'), ('b.tar.gz', 'w:gz')):
    (folder / 'in').mkdir(exist_ok=True)
    with tarfile.open(folder / 'in' / name, mode) as archive:
      for i in range(3):
        data = io.BytesIO()
        soundfile.write(data, z_of(i).ravel().repeat(8) / 4, 16000,
                        format='WAV')
        member = tarfile.TarInfo(f'{name[0]}{i}.wav')
        member.size = data.tell()
        data.seek(0)
        archive.addfile(member, data)
  names = in_folder(folder)
  return Subject(files=names, read=read_tars, stated=tar_states,
                 part_of=lambda file: [f'{file[3:]}/{file[3]}{i}.wav'
                                       for i in range(3)])


def read_tars(folder):
  """Returns {clip: (samples, checksum)} of a corpus prepared from archives."""
  out = folder.parent / f'{folder.name}-corpus'
  prepare.run(folder / 'in', out, workers=1)
  for line in (out / 'quarantine.jsonl').read_text().splitlines():
    row = json.loads(line)
    logging.warning('%s: %s', row['file'], row['reason'])
  with open(out / 'manifest.csv', newline='', encoding='utf-8') as file:
    return {row['file']: (row['samples'], row['sha256'])
            for row in csv.DictReader(file)}


def tar_states(folder, clip, fields):
  """Whether the tarfile module and libsndfile find these samples."""
  archive, _, name = clip.partition('/')
  with tarfile.open(folder / 'in' / archive) as file:
    data = file.extractfile(name).read()
  wave_S, _ = soundfile.read(io.BytesIO(data), dtype='int16')
  return fields == (str(len(wave_S)),
                    hashlib.sha256(wave_S.tobytes()).hexdigest())


SUBJECTS = {f.__name__: f for f in (
    sweep, curves, task, events, arrays, tables, checkpoints, released, tars)}
# Of what takes longest to read: by default, and with --slow.
FEWER = {'checkpoints': (3, 150), 'tars': (1, 40)}


@pytest.fixture(scope='module')
def subjects(tmp_path_factory):
  """{kind: Subject}, each written once."""
  known = {}

  def get(kind):
    if kind not in known:
      folder = tmp_path_factory.mktemp(kind)
      known[kind] = SUBJECTS[kind](folder)
      known[kind].folder = folder
      known[kind].whole = known[kind].read(folder)
    return known[kind]
  return get


def told_by(call, caplog):
  """Returns (result or None, error or None, all that was said)."""
  caplog.clear()
  with warnings.catch_warnings(record=True) as caught, limited(LIMIT):
    warnings.simplefilter('always')
    result = error = None
    try:
      result = call()
    except REFUSED as refusal:
      error = refusal
  said = [str(w.message) for w in caught] + caplog.messages
  return result, error, '\n'.join(said + [str(error)])


def fault_of(subject, folder, file, caplog):
  """Returns what is wrong with the outcome of a mutation, and its name."""
  before = set(in_folder(folder))
  result, error, text = told_by(lambda: subject.read(folder), caplog)
  names = (file, file.rsplit('/', maxsplit=1)[-1], str(folder / file))
  gone = {name for name in before - set(in_folder(folder))
          if name.split('/')[-1] not in {
              other.split('/')[-1] for other in in_folder(folder)}}
  if gone - {n for n in gone if n.endswith('.sha256.json')}:
    return f'deleted {sorted(gone)}', ''
  if error is not None:
    if len(str(error).strip().splitlines()) != 1 or len(str(error)) > 1000:
      return f'not one line: {str(error)[:300]}', ''
    if not any(n in text for n in (*names, *file.split('/')[:-1])):
      return f'does not name {file}: {text}', ''
    return '', 'refused'
  if same(result, subject.whole):
    return '', 'same'
  if any(same(result, other) for other in subject.instead):
    return '' if text else 'said nothing', 'instead'
  for name in {*result, *subject.whole}:
    if same(result.get(name), subject.whole.get(name)):
      continue
    if name not in result:
      if name in subject.part_of(file) and any(n in text
                                              for n in (*names, name)):
        continue
      return f'{name} left out without a word: {text}', ''
    try:
      if subject.stated(folder, name, result[name]):
        continue
    except Exception as reason:
      return f'{name}: other numbers, and another reader: {reason!r}', ''
    return f'{name}: {result[name]}, whole {subject.whole.get(name)}', ''
  return '', 'stated or left out'


def mutate(subject, kind, number, folder):
  """Mutates a copy of a subject; returns the file."""
  rng = random.Random(f'{kind} {number}')
  shutil.copytree(subject.folder, folder)
  file = rng.choice(subject.files)
  whole = (folder / file).read_bytes()
  (folder / file).unlink()
  (folder / file).write_bytes(mutated(rng, subject.folder / file))
  del whole
  return file


def outcomes(kind, count, subject, folder, caplog):
  """Mutates and reads `count` times; returns faults and counted outcomes."""
  faults, counts = [], {}
  for number in range(count):
    copy = folder / f'{kind}-{number}'
    file = mutate(subject, kind, number, copy)
    try:
      fault, outcome = fault_of(subject, copy, file, caplog)
    except (Exception, TooSlow) as error:
      fault, outcome = f'{type(error).__name__}: {str(error)[:300]}', ''
    if fault:
      faults.append(f'{kind} {number}, {file}: {fault}')
    else:
      shutil.rmtree(copy)
    counts[outcome] = counts.get(outcome, 0) + 1
  return faults, counts


@pytest.mark.parametrize('kind', SUBJECTS)
def test_a_few_damaged_files(kind, subjects, tmp_path, caplog):
  few, _ = FEWER.get(kind, (FEW, MANY))
  faults, _ = outcomes(kind, few, subjects(kind), tmp_path, caplog)
  assert not faults, '\n'.join(faults)


@pytest.mark.slow
@pytest.mark.parametrize('kind', SUBJECTS)
def test_many_damaged_files(kind, subjects, tmp_path, caplog):
  _, many = FEWER.get(kind, (FEW, MANY))
  faults, counts = outcomes(kind, many, subjects(kind), tmp_path, caplog)
  print(kind, counts)
  assert not faults, '\n'.join(faults)


COMMANDS = {
    'sweep': ['launch.report', '--workdir={folder}', '--out={folder}/r.html'],
    'task': ['launch.evaluate', '--tasks={folder}', '--protocol=logistic',
             f'--checkpoint={records.SAMPLE}/model', '--out={folder}/o.json'],
    'arrays': ['launch.evaluate', '--embeddings={folder}/{file}',
               '--out={folder}/o.json'],
    'tables': ['launch.report', '--table={folder}/{file}']}


@pytest.mark.slow
@pytest.mark.parametrize('kind', COMMANDS)
def test_commands_say_it_in_one_line(kind, subjects, tmp_path):
  for number in range(4):
    folder = tmp_path / f'{kind}-{number}'
    file = mutate(subjects(kind), kind, number, folder)
    words = [word.format(folder=folder, file=file) for word in COMMANDS[kind]]
    done = subprocess.run(
        [sys.executable, '-m', *words], cwd=ROOT, capture_output=True,
        text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert 'Traceback' not in done.stderr
    errors = [line for line in done.stderr.splitlines()
              if line.startswith('error: ')]
    assert len(errors) == done.returncode, done.stderr
