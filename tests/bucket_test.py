"""Sweeps, corpora and reports on gs://, against a fake server."""


import numpy as np
import pytest

from audiorank import files
from audiorank import records
from tests import processes

POINTS = '''"""One point."""
from tests import tiny

def get_config(point='1e-3'):
  return tiny.config('', **{
      'opt.lr': float(point), 'train.steps': 6, 'train.log_every': 2,
      'eval.batch': 12, 'eval.protocol': 'logistic'})

def points():
  return ['1e-3']
'''


@pytest.fixture(scope='module')
def env(bucket_server, tmp_path_factory):
  return processes.environment(tmp_path_factory.mktemp('compiled'))


@pytest.fixture(scope='module')
def server(env):
  process = processes.Server(env)
  yield process
  process.close()


def final(root):
  """Returns {run: (parameters, records without times)} of a sweep."""
  return {workdir.name: processes.final(workdir)
          for workdir in records.run_folders(root)}


@pytest.fixture(scope='module')
def swept(server, corpus, tasks, tmp_path_factory):
  """Roots of one sweep, on a disk and on the bucket."""
  folder = tmp_path_factory.mktemp('points')
  (folder / 'one.py').write_text(POINTS)
  audio = corpus.parent / 'audio'
  done = server.run(folder, 'prepare', f'--audio={audio}', '--workers=1',
                    '--out=gs://bucket/corpus')
  assert done.returncode == 0, done.stderr
  files.send(tasks, 'gs://bucket/tasks')
  for root, data, scored in (
      (str(folder / 'runs'), corpus, tasks),
      ('gs://bucket/runs', 'gs://bucket/corpus', 'gs://bucket/tasks')):
    done = server.run(
        folder, 'sweep', f'--config={folder}/one.py', f'--root={root}',
        f'--config.data.root={data}', f'--config.eval.tasks={scored}',
        '--workers=1')
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == f'{root}/report.html'
  return files.path(folder / 'runs'), files.path('gs://bucket/runs')


@pytest.mark.slow
def test_a_sweep_on_a_bucket_is_that_on_a_disk(swept):
  local, remote = map(final, swept)
  assert set(local) == set(remote) and len(local) == 2
  for name in local:
    for a, b in zip(local[name][0], remote[name][0], strict=True):
      np.testing.assert_array_equal(a, b)
    assert local[name][1] == remote[name][1]
