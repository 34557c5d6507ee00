"""What the READMEs say: every command is one, every link leads somewhere."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import audiorank
from audiorank import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLONE = 'git clone https://github.com/audiorank/audiorank'
CLOUD = ROOT / 'launch/CLOUD.md'  # Its shell lines run in cloud_test.py.
PAGES = sorted(p for p in [CLOUD, *ROOT.glob('*.md'),
                           *ROOT.glob('.github/*.md'),
                           *ROOT.glob('[a-z]*/**/README.md')]
               if 'sample' not in p.parts and 'venv' not in str(p))


def blocks(page, *kinds):
  """Returns the fenced blocks of a page that are of one of some kinds."""
  return [body for said, body in re.findall(
      r'^```(\w*)\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
          if said in kinds]


def lines():
  """Returns [(page, line)] of all that pages and docstrings tell to run.

  Fenced lines, continued ones in one piece, what && joins apart; trees of
  files left out. Beside them what stands in backticks or a module's docstring
  and begins as a command does.
  """
  texts = []
  for page in PAGES:
    name = str(page.relative_to(ROOT))
    texts += [(name, body) for body in blocks(page, '', 'sh')
              if not body.splitlines()[0].endswith('/')]
    texts += [(name, ' '.join(said.split())) for said in re.findall(
        r'(?<!`)`((?:python|sh|pip|\.ci/run)\b[^`]*)`',
        page.read_text(encoding='utf-8'))]
  for path in sorted(p for folder in ('audiorank', 'configs', 'launch')
                     for p in (ROOT / folder).rglob('*.py')):
    found = re.match(r'"""(.*?)"""', path.read_text(), re.S)
    doc = re.sub(r'\\\n\s*', ' ', found[1]) if found else ''
    # What is said of a command stands three spaces after it.
    texts += [(str(path.relative_to(ROOT)), re.split(r' {3,}', said.strip())[0])
              for said in re.findall(r'^  (python -m .*)', doc, re.M)]
  out = []
  for page, body in texts:
    for line in re.sub(r'\\\n\s*', ' ', body).splitlines():
      # A file that is somebody's own is stood in for.
      out += [(page, part.strip().replace('--config=FILE',
                                          '--config=configs/minute.py'))
              for part in line.split('&&')]
  return out


def commands():
  """Returns [(page, words)] of every `python -m ...`."""
  return [(page, shlex.split(line.split(' > ')[0], comments=True)[2:])
          for page, line in lines() if line.startswith('python -m ')]


# Imports once what most commands need, then forks a child a command.
PARSE = """
import importlib, json, os, sys
from absl import flags
from launch import cli
import audiorank.evaluate, audiorank.train

def wrong_of(cases):
  sys.argv = ['x']
  module = importlib.import_module(cases[0][1][0])
  words = {'launch.sweep': lambda: module.WORDS,
           'launch.emit': lambda: module.ENGINES,
           'launch.bench': lambda: ('all', *module.AREAS)}.get(
               module.__name__, lambda: ())()
  out = []
  for page, (name, *args) in cases:
    flags.FLAGS.unparse_flags()
    # A config's fields become flags as they are read, and stay.
    for field in [f for f in flags.FLAGS if f.startswith('config.')]:
      delattr(flags.FLAGS, field)
    try:
      sys.argv = cli.with_config_file([name, *args])
      left = flags.FLAGS(sys.argv)[1:]
      if set(left) - set(words):
        raise ValueError(f'{left}: expected words of {list(words)}')
    except Exception as error:
      out.append([page, ' '.join([name, *args]), repr(error)])
  return out

for cases in json.loads(sys.argv[1]):
  pid = os.fork()
  if not pid:
    print(json.dumps(wrong_of(cases)), flush=True)
    os._exit(0)
  if os.waitpid(pid, 0)[1]:
    sys.exit(cases[0][1][0])
"""


def test_every_command_parses():
  """Flags, enumerations, config fields and words, by the real parsers."""
  found = commands()
  assert len(found) > 60 and {'README.md', 'launch/README.md',
                              'configs/README.md', 'launch/export.py',
                              'audiorank/laws/README.md',
                              'audiorank/hear/parity.py'} <= {
                                  page for page, _ in found}
  wrong, by_command = [], []
  for name in sorted({words[0] for _, words in found} - {'pytest'}):
    cases = [c for c in found if c[1][0] == name]
    if name in BY_HAND:
      wrong += [c for c in cases if not BY_HAND[name](c[1][1:])]
      continue
    by_command.append(cases)
  done = subprocess.run(
      [sys.executable, '-W', 'ignore', '-c', PARSE, json.dumps(by_command)],
      capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(answers) == len(by_command)
  assert wrong + sum(answers, []) == []


# Commands without absl's flags: what they take.
BY_HAND = {
    'heareval.embeddings.runner':  # Run in tests/peers.
        lambda args: args[:2] == ['audiorank.hear.api', '--model'],
    'audiorank.checkpoint': lambda args: args[0] == 'fsck' and len(args) > 1,
    'launch.tpu.compiler': lambda args: not args,
    'launch.benches.steps': lambda args: len(args) == 1,
    'launch.benches.peers.laws': lambda args: len(args) == 2}


def test_every_other_line_is_known(pytestconfig):
  """Nothing in a page can be typed that is not there."""
  setup = (ROOT / 'setup.py').read_text()
  extras = dict(re.findall(r"^        '([\w-]+)': (.*?\]?),$", setup, re.M))
  kits = (ROOT / 'tests/peers/peers_hear_test.py').read_text()
  ours = (ROOT / '.ci/run').read_text()
  seen = set()
  for page, line in lines():
    words = shlex.split(line, comments=True)
    if page == str(CLOUD.relative_to(ROOT)):
      continue
    if 'pytest' in words[:3]:
      seen.add('pytest')
      known, unknown = pytestconfig._parser.parse_known_and_unknown_args(
          words[words.index('pytest') + 1:])
      assert not unknown and all(
          (ROOT / p).exists() for p in known.file_or_dir), line
    elif words[0] == 'pip':
      seen.add('pip')
      assert words[1] == 'install', line
      for wanted in {*words[2:]} - {'-e'}:
        named = re.fullmatch(r'(?:\.|audiorank)\[([\w,-]+)\]', wanted)
        assert (set(named[1].split(',')) <= set(extras) if named else
                f"'{wanted}'" in setup), (page, line)
    elif words[0] == 'sh' or words[:1] == ['python'] and words[1] != '-m':
      seen.add('script')
      assert words[1] == '-c' or (ROOT / words[1]).is_file(), (page, line)
    elif words[0].endswith('bin/python'):
      # As tests/peers runs them, where the official packages are.
      seen.add('kit')
      assert (ROOT / words[1]).is_file(), line
      assert f"'{words[2]}'" in kits, line
      assert all(re.search(rf"'{w}['=]", kits) for w in words
                 if w.startswith('--')), line
    elif words[0] == 'ruff':
      assert f'\n{line}\n' in ours
    elif words[0] == 'mypy':  # Of .mypy.ini.
      assert words == ['mypy']
    elif words[0] == '.ci/run':
      assert all(f' = {w} ]' in ours for w in words[1:]), line
    elif words[0] in ('jupytext', 'jupyter'):  # In tests/notebooks_test.py.
      assert line in ('jupytext --sync notebooks/*.py',
                      'jupyter nbconvert --execute --inplace --to notebook '
                      'notebooks/small_study.ipynb'), line
    elif not line.startswith('python -m '):
      assert line in ('python3 -m venv venv', '. venv/bin/activate', CLONE,
                      'cp -a runs/quickstart runs/knn',
                        'cd audiorank'), (
          page, line)
  assert seen == {'pytest', 'pip', 'script', 'kit'}


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
  tree, = [b for b in blocks(ROOT / 'README.md', '')
           if b.startswith('audiorank/')]
  listed = set(re.findall(r'^  (\w[\w./, ]*?)(?:  |$)', tree, re.M))
  names = {n.strip(' ,') for line in listed for n in line.split(', ')}
  here = {p.name + ('/' if p.is_dir() else '') for p in
          (ROOT / 'audiorank').iterdir() if not p.name.startswith(('_', '.'))}
  assert here - {'README.md', 'py.typed'} == names - {''}


def test_commands_that_need_no_sweep_run(server, tmp_path):
  def run(*words):
    done = server.run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout

  z_ND = np.random.default_rng(0).standard_normal((200, 8)).astype('f')
  pd.DataFrame({f'd{i}': z for i, z in enumerate(z_ND.T)}).to_parquet(
      tmp_path / 'wide.parquet')
  np.save(tmp_path / 'z.npy', z_ND)
  assert 'RankMe' in run('evaluate', f'--embeddings={tmp_path}/z.npy',
                         f'--out={tmp_path}')
  said = run('sweep', 'plan', '--config=configs/minute.py')
  assert '4 points and their untrained networks' in said
  sample = records.SAMPLE
  run('export', f'--checkpoint={sample}/model',
      f'--out={tmp_path}/released')
  assert audiorank.load(tmp_path / 'released').config.model.width == 32
  said = run('report', f'--table={sample}/runs.parquet',
             '--law=saturating', '--x=rank', '--y=score')
  assert 'Q = Q_inf - a R^-b' in said and 'unbounded' in said


def test_the_nearest_is_suggested(server, tmp_path):
  """Of a word, a flag and a config's field."""
  for words, guess in (
      (['sweep', 'statu', '--root=x'], 'status'),
      (['report', '--workdi=x'], 'workdir'),
      (['sweep', 'plan', '--config=configs/minute.py',
        '--config.train.step=3'], 'steps')):
    done = server.run(tmp_path, *words)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert f'Did you mean {guess}' in done.stderr.replace('mean: ', 'mean ')
