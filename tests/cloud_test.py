"""launch/CLOUD.md and launch/Dockerfile: every line, against stand-ins."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import yaml

from audiorank import files
from audiorank import records
from tests import processes
from tests import readme_test

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = '\n'.join(readme_test.blocks(readme_test.CLOUD, 'sh'))

# Accepts the verbs that the page may use, and writes down what it was asked.
# An argument that is empty, or has an unset variable in it, is a mistake.
STAND_IN = '''#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >> "$STAND_INS/log"
for word; do
  case "$word" in ''|*=|*'$'*|*//) [[ "$word" == gs://*/ ]] || {{
    echo "odd word: $word" >&2; exit 9; }};; esac
done
case "$*" in
  {verbs}) ;;
  *) echo "unknown: $*" >&2; exit 9;;
esac
{body}
'''
GCLOUD = '|'.join(f'"{verb} "*' for verb in (
    'auth login', 'auth application-default login', 'config set project',
    'services enable', 'storage buckets create',
    'storage buckets add-iam-policy-binding', 'storage cp', 'storage rm',
    'artifacts repositories create', 'projects describe',
    'artifacts repositories add-iam-policy-binding', 'builds submit',
    'container clusters create', 'container clusters delete',
    'container clusters get-credentials', 'container node-pools create'))
KUBECTL = '|'.join(f'"{verb} "*' for verb in (
    'apply', 'create serviceaccount', 'get jobsets', 'delete jobsets'))
COPY = '''import sys
from audiorank import files
source, target = map(files.path, sys.argv[1:3])
if files.is_on_bucket(target):
  files.send(source, target)
else:
  target.write_bytes(source.read_bytes())
'''


def stand_ins(folder, python):
  """Writes programs of the names that the page uses; returns their PATH."""
  folder.mkdir()
  copy = f'{sys.executable} -c {shlex.quote(COPY)}'
  bodies = {
      'gcloud': (f'{GCLOUD}|"auth login"|"auth application-default login"',
                 '[ "$1 $2" = "projects describe" ] && echo 123\n'
                 f'if [ "$1 $2 $COPY" = "storage cp 1" ]; then {copy} '
                 '"${@: -2:1}" "${@: -1}"; fi\nexit 0'),
      'kubectl': (f'{KUBECTL}|"get jobsets"',
                  'if [ "$2" = -f ]; then grep -q JobSet "$3"; fi'),
      'pip': ('"install "*', ''), 'python': ('"-m launch."*', python)}
  for name, (verbs, body) in bodies.items():
    (folder / name).write_text(STAND_IN.format(verbs=verbs, body=body))
    (folder / name).chmod(0o755)
  return {'STAND_INS': str(folder), 'PATH': f'{folder}:{os.environ["PATH"]}'}


def test_every_line_of_the_page_runs(tmp_path):
  env = stand_ins(tmp_path / 'bin', 'echo kind: JobSet')
  done = subprocess.run(['bash', '-euo', 'pipefail', '-c', SCRIPT],
                        cwd=tmp_path, env={**os.environ, **env},
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  log = (tmp_path / 'bin/log').read_text().splitlines()
  lines = [line for line in SCRIPT.splitlines()
           if line and not line.startswith('export ')]
  # And one within an `export`.
  assert len(log) == len(lines) + 1
  assert 'audiorank' in (bucket := log[-1].split('gs://')[1])
  assert any(f'--root=gs://{bucket}/quickstart' in line for line in log)


@pytest.mark.slow
def test_the_page_leads_to_the_figure(
    bucket_server, corpus, tasks, tmp_path, monkeypatch):
  """All of it on the fake bucket, the cluster being one worker of a tiny
  sweep."""
  shutil.copytree(corpus.parent / 'audio', tmp_path / 'sounds')
  shutil.copytree(tasks, tmp_path / 'tasks')
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/quickstart.py').write_text('''"""Tiny."""
from tests import tiny

def get_config(point='1'):
  return tiny.config('', **{'seed': int(point), 'eval.batch': 12,
                            'eval.protocol': 'logistic'})

def points():
  return ['1', '2']
''')
  env = stand_ins(tmp_path / 'bin', f'exec {sys.executable} "$@"')
  script = SCRIPT[:SCRIPT.index('kubectl delete')].replace(
      'PROJECT=my-project', 'PROJECT=page')
  from launch.benches import fake_gcs
  fake_gcs.make(bucket_server, 'page-audiorank')
  done = subprocess.run(
      ['bash', '-euo', 'pipefail', '-c', script], cwd=tmp_path, timeout=500,
      env={**processes.environment(tmp_path / 'cache'), **env, 'COPY': '1'},
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  root = files.path('gs://page-audiorank/quickstart')
  assert {records.state(run) for run in records.run_folders(root)} == {'done'}
  assert (tmp_path / 'report.html').read_text().startswith('<!')
  manifests = list(yaml.safe_load_all((tmp_path / 'jobset.yaml').read_text()))
  assert [tree['kind'] for tree in manifests] == ['JobSet']
  colab = types.ModuleType('google.colab')
  colab.auth = types.SimpleNamespace(authenticate_user=lambda: None)
  monkeypatch.setitem(sys.modules, 'google.colab', colab)
  names = {'BUCKET': 'page-audiorank'}
  (block,) = readme_test.blocks(readme_test.CLOUD, 'python')
  exec(block, names)
  assert names['it'].claims is not None


# --- The image ---


def steps():
  """Returns [(instruction, the rest)] of launch/Dockerfile."""
  text = re.sub(r'\\\n\s*', ' ', (ROOT / 'launch/Dockerfile').read_text())
  lines = [line for line in text.splitlines()
           if line.strip() and not line.startswith('#')]
  return [tuple(line.split(' ', 1)) for line in lines]


def test_the_images_steps_lead_to_a_worker(tmp_path):
  """COPY and RUN as they are, but for the network: what pip would fetch is
  here already, and apt-get and useradd are stand-ins."""
  pytest.importorskip('setuptools')
  home, env, user = tmp_path / 'home', dict(os.environ), 'root'
  binary = tmp_path / 'bin'
  binary.mkdir()
  for name in ('apt-get', 'useradd', 'rm'):
    (binary / name).write_text('#!/bin/sh\nexit 0\n')
    (binary / name).chmod(0o755)
  env |= {'PATH': f'{binary}:{os.environ["PATH"]}', 'JAX_PLATFORMS': 'cpu'}
  env.pop('PYTHONPATH', None)
  here, command, ran = None, None, []
  for step, rest in steps():
    if step == 'WORKDIR':
      here = home / rest.lstrip('/')
      here.mkdir(parents=True)
    elif step == 'COPY':
      *sources, target = rest.split()
      for source in sources:
        assert (ROOT / source).exists(), source
        if (ROOT / source).is_dir():
          shutil.copytree(ROOT / source, here / target,
                          ignore=shutil.ignore_patterns('__pycache__'))
        else:
          shutil.copy(ROOT / source, here / target)
    elif step == 'RUN':
      if rest.startswith('pip install'):
        extra = re.search(r"'\.\[(\w+)\]'", rest)[1]
        assert f"        '{extra}': " in (here / 'setup.py').read_text()
        # As pip has setuptools build it.
        rest = (f'{sys.executable} setup.py --quiet build_py '
                f'--build-lib={tmp_path}/site')
      subprocess.run(['sh', '-ec', rest], cwd=here or tmp_path, env=env,
                     check=True, capture_output=True)
      ran.append(rest)
    elif step == 'USER':
      user = rest
    elif step == 'ENV':
      env |= dict([rest.split('=')])
    elif step == 'CMD':
      command = json.loads(rest)
    else:
      assert step == 'FROM' and rest.startswith('python:3.12')
  assert len(ran) == 3 and f'useradd --create-home --uid 1000 {user}' in ran[1]
  assert command[0] == 'python'
  done = subprocess.run([sys.executable, *command[1:]], cwd=here, env=env,
                        capture_output=True, text=True)
  assert '--root: Folder of the sweep' in ' '.join(done.stdout.split())
  # Installed as a wheel as well: `audiorank` works from any folder.
  assert (tmp_path / 'site/audiorank/_commands/worker.py').is_file()


def test_the_image_is_built_by_what_the_page_says():
  (step,) = yaml.safe_load((ROOT / 'launch/cloudbuild.yaml').read_text())[
      'steps']
  assert step['args'][:3] == ['build', '--file', 'launch/Dockerfile']
  assert (ROOT / step['args'][2]).is_file()
