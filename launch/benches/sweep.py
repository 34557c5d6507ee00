"""The cost of a sweep besides its runs: starting them and collecting them.

These are CPU seconds of the launcher, with workers that do nothing, and of
collecting and loading the tables.
"""

from collections.abc import Iterator
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from launch.benches import timing

# The real launcher, but its workers only mark every run as done.
LAUNCHER = '''
import resource, sys
from launch import cli, sweep
from launch.engines import local
local.command = lambda name, *arguments: [
    'sh', '-c', 'for run in {root}/*/config.json; do '
    'touch ${{run%config.json}}LEASE ${{run%config.json}}DONE; done']
def main(argv):
  sweep.main(argv)
  used = resource.getrusage(resource.RUSAGE_SELF)
  print('CPU', used.ru_utime + used.ru_stime)
cli.run(main, words=True)
'''
POINTS = '''"""Points that do nothing."""
from configs import quickstart

def get_config(point='1'):
  c = quickstart.get_config('en32-2,h=0,mask=0.75')
  c.opt.lr = 1e-5 * int(point)
  c.monitor.valid_clips = 0  # The corpus is too small to hold any out.
  return c

def points():
  return [str(i + 1) for i in range({count})]
'''


def launcher_seconds(folder: pathlib.Path, count: int,
                     arguments: tuple[str, ...]) -> float:
  """Returns the CPU seconds of a launcher.

  Args:
    folder: for its sweep.
    count: number of points.
    arguments: further ones of the command.
  """
  config = folder / f'points{count}.py'
  config.write_text(POINTS.format(count=count))
  root = folder / f'root{count}'
  done = subprocess.run(
      [sys.executable, '-c', LAUNCHER.format(root=root),
       f'--config={config}', f'--root={root}', '--noreport',
       '--workers=2', *arguments], check=True, text=True,
      capture_output=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  # The launcher prints other lines before this one.
  return float(done.stdout.split('CPU')[-1])


def launching(folder: pathlib.Path, points: int) -> float:
  """Returns the launcher's CPU milliseconds per point, without its start."""
  from audiorank import prepare
  from audiorank import synth
  synth.write_audio(folder / 'audio', .1, 0, progress=False)
  prepare.run(folder / 'audio', folder / 'corpus')
  synth.write_tasks(folder, 0, clips_per_task=(12, 6, 6), names=['timbre'],
                    progress=False)
  arguments = (f'--config.data.root={folder}/corpus',
               f'--config.eval.tasks={folder}/tasks')
  # The difference of two launches: what a start costs cancels.
  one, many = (launcher_seconds(folder, n, arguments) for n in (1, points))
  return 1e3 * (many - one) / (points - 1)


def write_runs(root: pathlib.Path, runs: int, rows: int) -> None:
  """Writes a sweep of finished runs.

  Args:
    root: of the sweep.
    runs: number of runs.
    rows: number of rows of each curve.
  """
  from audiorank import files
  from audiorank import records
  from configs import base
  config = records.plain(base.get_config('en128-12'))
  config['train']['steps'] = 20_000
  # The fields of a real record, so that as much is parsed.
  metric = {'rank': {'value': 9., 'low': 8., 'high': 10., 'value_inf': 9.5,
                     'siblings': {f's{i}': 1. for i in range(6)}}}
  metric['rank_center'] = metric['rank']
  for number in range(runs):
    # A run's folder has the name that its config gives it.
    own = {**config, 'seed': number}
    workdir = root / records.run_id(own)
    (workdir / 'records').mkdir(parents=True)
    about = {
        'config.json': own, 'DONE': {},
        'records/run-00000000.json': {
            'kind': 'run', 'step': 0, 'hours': 1.,
            'parameters': {'encoder': 1, 'decoder': 1},
            'flops_per_clip': {'total': 1., 'encoder': 1.}},
        'records/monitor-00020000.json': {
            'kind': 'monitor', 'step': 20_000, 'n': 100, **metric}}
    for name, tree in about.items():
      (workdir / name).write_text(json.dumps(tree))
    # Numbers of many digits, as real curves have.
    (workdir / 'metrics.jsonl').write_text(''.join(
        files.json_line({'step': 100 * (i + 1), 'loss': 1 / (i + 1 + number),
                      'grad_norm': .5 + i / 7, 'lr': 3e-4 * i / rows,
                      'param_norm': 30 + i / 9, 'waiting': .001 * i})
        for i in range(rows)))


def one_more(root: pathlib.Path, runs: int) -> float:
  """Returns the CPU seconds of the page when one run has a record more.

  Args:
    root: of a sweep that `write_runs` wrote.
    runs: number of runs.
  """
  from audiorank import records
  from audiorank import report
  page = report.LivePage(root, f'{runs} runs')
  # Scores on a law, so that it is fitted too.
  for number, folder in enumerate(records.run_folders(root)):
    rank = 10 * 1.01 ** number
    monitor = records.path(folder, 'monitor', 20_000)
    tree = json.loads(monitor.read_text())
    tree['rank']['value'] = rank
    monitor.write_text(json.dumps(tree))
    records.write(folder, 'hear.task', 20_000, {
        'task': 'task', 'metric': 'accuracy', 'embedding_type': 'scene',
        'task_sha256': '', 'settings': {}, 'result': {
            'score': .8 - rank ** -.5, 'protocol': 'hear'}})
  states = {folder.name: 'started' for folder in records.run_folders(root)}
  page.page(states, '', 0., {})
  name = next(iter(states))
  text = (root / name / 'records/monitor-00020000.json').read_text()
  (root / name / 'records/monitor-00010000.json').write_text(
      text.replace('20000', '10000'))
  began = time.process_time()
  page.page(states, '', 0., {})
  return time.process_time() - began


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from audiorank import records
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    points = timing.sized(quick, 20, 100)
    what = f'launcher, {points} points that do nothing'
    if only in what:
      yield timing.alone(what, launching(folder, points), 'ms a point', None,
                         'CPU after the first; at most 60 wanted')
    runs = timing.sized(quick, 100, 500)
    what = f'page of {runs} runs, one record more'
    if only in what:
      write_runs(folder / 'live', runs, 2)
      yield timing.alone(what, one_more(folder / 'live', runs), 's', None,
                         'CPU; at most 1 wanted')
    runs = timing.sized(quick, 300, 3_000)
    what = f'collect {runs} runs x 200 rows'
    if only in what or only in 'load':
      write_runs(folder / 'sweep', runs, 200)
      # CPU time: the machine may be busy.
      began = time.process_time()
      records.collect(folder / 'sweep')
      yield timing.alone(what, time.process_time() - began, 's', None,
                         'CPU; at most 5 wanted')
      began = time.process_time()
      tables = records.load(folder / 'sweep')
      curve = records.curves(folder / 'sweep')
      spent = time.process_time() - began
      # A fast answer has to be a whole one.
      assert len(tables.runs) == runs and len(curve) == 200 * runs
      yield timing.alone('load them', spent, 's', None,
                         'CPU; at most 1 wanted')
