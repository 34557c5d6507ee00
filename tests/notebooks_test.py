"""The notebooks run as they are, and each is one with its text file."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from audiorank.report import wording

jupytext = pytest.importorskip('jupytext')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'notebooks'
NAMES = ('checkpoint', 'figures', 'quickstart', 'small_study')
# Kept as it came out: a write-up that is read where it lies.
EXECUTED = ('small_study',)
# As the kernel's own packages want to be.
QUIET = pytest.mark.filterwarnings('ignore')


def cells(notebook):
  return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


@QUIET
@pytest.mark.parametrize('name', NAMES)
def test_both_halves_are_one(name):
  text = jupytext.read(FOLDER / f'{name}.py')
  paired = jupytext.read(FOLDER / f'{name}.ipynb')
  assert cells(text) == cells(paired), f'jupytext --sync notebooks/{name}.py'
  drawn = sum('image/png' in out.get('data', {}) for cell in paired.cells
              for out in cell.get('outputs', ()))
  kept = any(cell.get('outputs') for cell in paired.cells)
  assert kept == (name in EXECUTED) and (drawn > 4 or not kept)


@QUIET
def test_a_change_of_the_text_reaches_the_notebook(tmp_path):
  """By the line of notebooks/README.md."""
  line, = re.findall(r'^jupytext (.*)$', (FOLDER / 'README.md').read_text(),
                     re.M)
  folder = shutil.copytree(FOLDER, tmp_path / 'notebooks')
  text = folder / 'figures.py'
  text.write_text(text.read_text() + '\n# %%\nprint(12345)\n')
  # The notebook is the older of the two.
  os.utime(folder / 'figures.ipynb', (0, 0))
  *flags, pages = line.split()
  done = subprocess.run(
      [sys.executable, '-m', 'jupytext', *flags,
       *sorted(map(str, tmp_path.glob(pages)))], cwd=tmp_path, text=True,
      capture_output=True)
  assert done.returncode == 0, done.stderr
  assert cells(jupytext.read(folder / 'figures.ipynb'))[-1] == (
      'code', 'print(12345)')


@pytest.mark.parametrize('name', NAMES)
def test_badge_opens_this_notebook(name):
  text = (FOLDER / f'{name}.py').read_text()
  where, = re.findall(r'colab\.research\.google\.com/github/([^)]*)\)', text)
  assert where.endswith(f'/notebooks/{name}.ipynb')
  # What is installed is what is opened.
  repository = '/'.join(where.split('/')[:2])
  assert f'github.com/{repository}' in text.replace(where, '')


def test_there_are_no_others():
  assert {p.stem for p in FOLDER.glob('*.ipynb')} == set(NAMES) == {
      p.stem for p in FOLDER.glob('*.py')}


def outputs(name, monkeypatch):
  """Runs a notebook; returns what it printed and how many figures it drew."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  notebook = jupytext.read(FOLDER / f'{name}.py')
  nbclient.NotebookClient(
      notebook, timeout=600, kernel_name='python3',
      resources={'metadata': {'path': str(FOLDER)}}).execute()
  made = [out for cell in notebook.cells for out in cell.get('outputs', ())]
  text = ''.join(out.get('text', '') for out in made)
  drawn = sum('image/png' in out.get('data', {}) for out in made)
  return text, drawn


@QUIET
def test_figures_runs(monkeypatch):
  text, drawn = outputs('figures', monkeypatch)
  assert drawn == 12
  assert 'What to do next: ' in text


@QUIET
@pytest.mark.slow
def test_the_write_up_is_drawn_from_its_records_alone(monkeypatch):
  text, drawn = outputs('small_study', monkeypatch)
  kept = jupytext.read(FOLDER / 'small_study.ipynb')
  stored = [out for cell in kept.cells for out in cell.get('outputs', ())]
  assert drawn == sum('image/png' in out.get('data', {}) for out in stored)
  assert 'What does not hold: ' in text
  # What is said there is what comes out now.
  assert text == ''.join(out.get('text', '') for out in stored)


@QUIET
def test_page_and_notebook_have_the_claims_of_the_records(study_claims):
  """By the line of notebooks/README.md, word for word."""
  page = (FOLDER / 'README.md').read_text(encoding='utf-8')
  table = page.split('<!-- claims -->\n')[1].split('\n<!-- /claims -->')[0]
  assert table == wording.markdown(study_claims)
  notebook = jupytext.read(FOLDER / 'small_study.ipynb')
  shown = [out['data']['text/markdown'] for cell in notebook.cells
           for out in cell.get('outputs', ())
           if 'text/markdown' in out.get('data', {})]
  assert shown == [table]


@QUIET
@pytest.mark.slow
def test_checkpoint_runs(monkeypatch):
  text, drawn = outputs('checkpoint', monkeypatch)
  assert drawn == 4
  # The sounds, the model and the reading of the sweep, made anew: the monitor
  # leaves out the held-out recordings, so the two agree within the interval.
  value, low, high = map(float, re.search(
      r'RankMe ([\d.]+), 95 % ([\d.]+) to ([\d.]+)', text).groups())
  assert low < value < high and low < 10.68 < high


@QUIET
@pytest.mark.slow
def test_quickstart_runs(monkeypatch):
  text, drawn = outputs('quickstart', monkeypatch)
  assert drawn == 2 and 'report.html' in text
  assert '4 points and their untrained networks' in text
