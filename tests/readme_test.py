"""What the READMEs say: every command is one, every link leads somewhere."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import soundfile

import audiorank
from audiorank import audio
from audiorank import masking
from audiorank import model
from audiorank import objectives
from audiorank import program
from audiorank import records
from configs import base

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in [*ROOT.glob('*.md'), *ROOT.glob('.github/*.md'),
                           *ROOT.glob('[a-z]*/**/README.md')]
               if 'sample' not in p.parts and 'venv' not in str(p))


def blocks(page, kind=''):
  """Returns the fenced blocks of a page that are of a kind."""
  return [body for said, body in re.findall(
      r'^```(\w*)\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
          if said == kind]


def commands():
  """Returns [(page, words)] of `python -m ...` in pages and in --help."""
  texts = [(str(page.relative_to(ROOT)), body) for page in PAGES
           for body in blocks(page)]
  for path in sorted(ROOT.glob('launch/*.py')):
    doc = path.read_text().split('"""')[1]
    lines = [line for line in doc.splitlines()
             if line.startswith('  python -m ')]
    # What is said of a command stands three spaces after it.
    texts += [(f'launch/{path.name}', re.split(r' {3,}', line.strip())[0])
              for line in lines]
  out = []
  for page, body in texts:
    body = re.sub(r'\\\n\s*', ' ', body)
    for line in body.splitlines():
      for part in line.split('&&'):
        if part.strip().startswith('python -m '):
          out.append((page, shlex.split(part, comments=True)[2:]))
  return out


PARSE = """
import importlib, json, sys
from absl import flags
cases = json.loads(sys.argv[1])
sys.argv = ['x']
importlib.import_module(cases[0][1][0])
out = []
for page, (name, *args) in cases:
  flags.FLAGS.unparse_flags()
  try:
    # Places are left open: a file that is named need not be there.
    sys.argv = [name, *args]
    flags.FLAGS(sys.argv)
  except FileNotFoundError:
    pass
  except Exception as error:
    out.append([page, ' '.join([name, *args]), str(error)])
print(json.dumps(out))
"""


def test_every_command_parses():
  found = commands()
  assert len(found) > 40 and {'README.md', 'launch/README.md',
                              'configs/README.md', 'launch/export.py'} <= {
                                  page for page, _ in found}
  wrong = []
  for name in sorted({words[0] for _, words in found}):
    if not name.startswith('launch.'):
      path = ROOT / f"{name.replace('.', '/')}.py"
      assert name == 'pytest' or path.is_file(), name
      continue
    cases = [c for c in found if c[1][0] == name]
    done = subprocess.run([sys.executable, '-c', PARSE, json.dumps(cases)],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wrong += json.loads(done.stdout)
  assert wrong == []


def test_every_command_has_an_example_in_its_help():
  for path in ROOT.glob('launch/*.py'):
    text = path.read_text()
    if 'cli.run(main' in text:
      assert f'python -m launch.{path.stem} ' in text.split('"""')[1], path


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(
    p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  text = page.read_text(encoding='utf-8')
  for to in re.findall(r'\]\(([^)#]+)\)', text):
    assert '://' in to or (page.parent / to).exists(), to


def test_the_tree_is_the_tree():
  """What README.md lists is there, and what is there is listed."""
  tree, = [b for b in blocks(ROOT / 'README.md') if b.startswith('audiorank/')]
  listed = set(re.findall(r'^  (\w[\w./, ]*?)(?:  |$)', tree, re.M))
  names = {n.strip(' ,') for line in listed for n in line.split(', ')}
  here = {p.name + ('/' if p.is_dir() else '') for p in
          (ROOT / 'audiorank').iterdir() if not p.name.startswith(('_', '.'))}
  assert here - {'README.md', 'py.typed'} == names - {''}


def run(*words, cwd=ROOT):
  done = subprocess.run(
      [sys.executable, '-m', *words], capture_output=True, text=True, cwd=cwd,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_commands_that_need_no_sweep_run(tmp_path):
  z_ND = np.random.default_rng(0).standard_normal((200, 8)).astype('f')
  pd.DataFrame({f'd{i}': z for i, z in enumerate(z_ND.T)}).to_parquet(
      tmp_path / 'wide.parquet')
  np.save(tmp_path / 'z.npy', z_ND)
  assert 'RankMe' in run('launch.evaluate', f'--embeddings={tmp_path}/z.npy',
                         f'--out={tmp_path}')
  said = run('launch.sweep', 'plan', '--config=configs/minute.py')
  assert '4 points and their untrained networks' in said
  sample = records.SAMPLE
  run('launch.export', f'--checkpoint={sample}/model',
      f'--out={tmp_path}/released')
  assert audiorank.load(tmp_path / 'released').config.model.width == 32
  said = run('launch.report', f'--table={sample}/runs.parquet',
             '--law=saturating', '--x=rank', '--y=score')
  assert 'Q = Q_inf - a R^-b' in said and 'unbounded' in said


def test_the_task_of_hears_page(tmp_path, monkeypatch):
  code, = [b for b in blocks(ROOT / 'audiorank/hear/README.md', 'python')
           if 'labelvocabulary' in b]
  monkeypatch.chdir(tmp_path)
  exec(code, {'pathlib': pathlib, 'np': np, 'soundfile': soundfile,
              'json': json})
  found = audiorank.evaluate(records.SAMPLE / 'model', 'tasks',
                             protocol='logistic')
  assert found['measure'].tolist() == ['top1_acc', 'mAP']
  # Twenty decibels apart: any encoder of a log-mel tells them.
  assert found['score'].min() > .95


def test_the_objective_of_configs_page():
  code, = [b for b in blocks(ROOT / 'configs/README.md', 'python')
           if 'OBJECTIVES' in b]
  known = dict(objectives.OBJECTIVES)
  try:
    exec(code, {'audio': audio, 'masking': masking, 'model': model,
                'jnp': jnp, 'objectives': objectives})
    c = base.get_config('en32-2')
    c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
    c.model.target_frames, c.data.crop_seconds = 104, .5
    made = jax.eval_shape(lambda key: program.init(c, key),
                          jax.random.key(0))
    loss, (stats, _) = jax.eval_shape(
        lambda made, wave_BS: objectives.named('loudness')(
            c, {'params': made.params, 'batch_stats': made.batch_stats},
            wave_BS, jax.random.key(1)), made,
        jax.ShapeDtypeStruct((2, 8000), jnp.float32))
    assert loss.shape == () and jax.tree.map(jnp.shape, stats) == (
        jax.tree.map(jnp.shape, made.batch_stats))
  finally:
    objectives.OBJECTIVES.clear()
    objectives.OBJECTIVES.update(known)


def test_the_nearest_is_suggested():
  """Of a word, a flag and a config's field."""
  for words, guess in (
      (['launch.sweep', 'statu', '--root=x'], 'status'),
      (['launch.report', '--workdi=x'], 'workdir'),
      (['launch.sweep', 'plan', '--config=configs/minute.py',
        '--config.train.step=3'], 'steps')):
    done = subprocess.run([sys.executable, '-m', *words], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert f'Did you mean {guess}' in done.stderr.replace('mean: ', 'mean ')
