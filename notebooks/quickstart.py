# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sweep in a minute
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/audiorank/audiorank/blob/main/notebooks/quickstart.ipynb)
#
# Trains four tiny masked autoencoders on sounds it makes itself, reads the
# effective rank of their embeddings while they train, scores them beside their
# untrained networks, and reports. It shows how a sweep goes; models this small
# do not show whether the law holds.

# %%
import pathlib
import subprocess
import sys
import tempfile

REPOSITORY = 'https://github.com/audiorank/audiorank'
here = pathlib.Path.cwd()
home = here if (here / 'launch').is_dir() else here.parent
if not (home / 'launch').is_dir():
  home = here / 'audiorank'
  if not home.is_dir():
    subprocess.run(['git', 'clone', '-q', '--depth=1', REPOSITORY, str(home)],
                   check=True)
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '-e',
                  str(home)], check=True)
sys.path.insert(0, str(home))
root = pathlib.Path(tempfile.mkdtemp()) / 'minute'


def launch(*words):
  """Runs a command and shows what it says while it says it."""
  command = [sys.executable, '-m', *words]
  print('$', 'python', *command[1:])
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.STDOUT, cwd=home)
  for line in process.stdout:
    print(line, end='', flush=True)
  if process.wait():
    raise SystemExit(f'{command[2]} ended with {process.returncode}')


# %% [markdown]
# ## What it would cost

# %%
launch('launch.sweep', 'plan', '--config=configs/minute.py')

# %% [markdown]
# ## Train, score, report
#
# Interrupted, the same cell goes on where it was.

# %%
launch('launch.sweep', '--config=configs/minute.py', f'--root={root}')

# %% [markdown]
# ## What came out

# %%
# %matplotlib inline
import audiorank
from audiorank import analysis
from audiorank import figures
from audiorank import records
from audiorank.report import wording

tables = records.load(root)
print('\n\n'.join(wording.opening(analysis.analyze(tables))))
figures.rank_steps(tables.history[~tables.history['untrained']]).figure

# %%
figures.rank_score(tables.runs).figure

# %% [markdown]
# ## One of the models

# %%
best = tables.runs.loc[tables.runs['score'].idxmax()]
model = audiorank.load(root / best['run_id'])
print(best['name'], model.config.model.width, 'wide')
print(f'The whole report: {root}/report.html')
