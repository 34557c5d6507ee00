"""The notebooks run as they are, and each is one with its text file."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import pytest

from audiorank import files
from audiorank import synth
from audiorank.hear import tasks as hear_tasks
from audiorank.report import wording
from tests import transformers_models

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


def outputs(name, monkeypatch, **values):
  """Runs a notebook; returns its printed text and its number of figures.

  Args:
    name: of the notebook.
    monkeypatch: of the test.
    **values: of its parameters, which are empty strings in the file.
  """
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  notebook = jupytext.read(FOLDER / f'{name}.py')
  for parameter, value in values.items():
    (cell,) = (c for c in notebook.cells if f"\n{parameter} = ''" in c.source)
    cell.source = cell.source.replace(f"\n{parameter} = ''",
                                      f'\n{parameter} = {str(value)!r}')
  nbclient.NotebookClient(
      notebook, timeout=600, kernel_name='python3',
      resources={'metadata': {'path': str(FOLDER)}}).execute()
  results = [out for cell in notebook.cells for out in cell.get('outputs', ())]
  text = ''.join(out.get('text', '') for out in results)
  drawn = sum('image/png' in out.get('data', {}) for out in results)
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


def rank_of(text):
  """Returns (value, low, high) of the RankMe that the notebook prints."""
  return tuple(map(float, re.search(
      r'RankMe ([\d.]+), 95 % ([\d.]+) to ([\d.]+)', text).groups()))


@QUIET
@pytest.mark.slow
def test_checkpoint_runs(monkeypatch):
  text, drawn = outputs('checkpoint', monkeypatch)
  assert drawn == 4
  # The sweep's own RankMe of this model. Its monitor leaves out the recordings
  # of the validation loss, so the two agree within the interval.
  value, low, high = rank_of(text)
  assert low < value < high and low < 10.68 < high


@QUIET
@pytest.mark.slow
def test_checkpoint_on_a_bucket(monkeypatch, bucket, tmp_path):
  sample = ROOT / 'audiorank' / 'sample'
  synth.write_audio(tmp_path / 'audio', hours=.1, seed=0, workers=1)
  synth.write_tasks(tmp_path, seed=0, clips_per_task=(30, 20, 40),
                    names=['texture'], workers=1)
  (task,) = hear_tasks.find(tmp_path / 'tasks')
  for folder, name in ((sample / 'model', 'model'), (task, task.name),
                       (tmp_path / 'audio', 'audio')):
    files.send(folder, f'{bucket}/{name}', last=next(
        str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()))
  text, drawn = outputs(
      'checkpoint', monkeypatch, CHECKPOINT=f'{bucket}/model',
      TASK=f'{bucket}/{task.name}', SOUNDS=f'{bucket}/audio')
  assert drawn == 4 and f'{bucket}/model: 32 wide, takes 16 kHz' in text
  assert rank_of(text)[1] < rank_of(text)[0] < rank_of(text)[2]


@QUIET
@pytest.mark.slow
@pytest.mark.parametrize('name', ['wav2vec2', 'clap'])
def test_checkpoint_takes_a_public_encoder(name, monkeypatch, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    folder = transformers_models.write(name, tmp_path / name)
  synth.write_audio(tmp_path / 'audio', hours=.05, seed=0, workers=1)
  text, drawn = outputs('checkpoint', monkeypatch, CHECKPOINT=f'hf:{folder}',
                        SOUNDS=tmp_path / 'audio')
  kilohertz = {'wav2vec2': 16, 'clap': 48}[name]
  assert drawn == 4 and f'wide, takes {kilohertz} kHz' in text
  assert rank_of(text)[0] > 1


@QUIET
@pytest.mark.slow
def test_quickstart_runs(monkeypatch):
  text, drawn = outputs('quickstart', monkeypatch)
  assert drawn == 2 and 'report.html' in text
  assert '4 points and their untrained networks' in text
