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
# # The small study: the paper's claims, at the size of a laptop
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/audiorank/audiorank/blob/main/notebooks/small_study.ipynb)
#
# Every number, table and figure below is drawn from the records in
# `results/small_study`; nothing is trained here. The runs were made by
# `configs/small_study.py` at scale `small` on 7.2 hours of recorded speech,
# music, effects and percussion, and scored on four tasks of recorded sound
# (drum, voice, pitch, kind of sound) and four of the synthetic dataset (scene,
# order, rhythm, texture), which a mean spectrum does not solve.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec('audiorank') is None:
  subprocess.run([
      sys.executable, '-m', 'pip', 'install', '-q',
      'audiorank @ git+https://github.com/audiorank/audiorank'], check=True)

# %%
# @markdown A study's folder or a URL that holds `runs.parquet`,
# @markdown `history.parquet` and `tasks.parquet`.
STUDY = ''  # @param {type:"string"}

# %%
# %matplotlib inline
import pathlib

from IPython import display
import pandas as pd

from audiorank import analysis
from audiorank import figures
from audiorank import records
from audiorank.analysis import study
from audiorank.report import wording

here = pathlib.Path('results/small_study')
away = ('https://raw.githubusercontent.com/audiorank/audiorank/main/'
        'notebooks/results/small_study')
tables = records.load(STUDY or (here if here.is_dir() else away))
it = analysis.analyze(tables)
for sentence in wording.opening(it):
  print(f'{sentence}\n')

# %% [markdown]
# ## What a doubling of RankMe is worth
#
# If RankMe unified model size, data and all the rest, a doubling of it would
# be worth the same score whatever was varied: every interval would hold the
# dashed line. Each row compares configurations that are equal in all but what
# is named; the last one all configurations of equal width.

# %%
figures.slopes(it.claims).figure

# %% [markdown]
# ## What was run

# %%
print('\n'.join(f'- {sentence}' for sentence in wording.rows_used(it)))
trained = pd.concat([it.study.trained, it.study.others])
print(f"{trained['flops'].sum():.2g} training FLOPs")
about = trained.groupby('experiment').agg(
    trainings=('run_id', 'size'), sizes=('size', 'nunique'),
    seeds=('seed', 'nunique'), flops=('flops', 'sum'),
    lowest_rank=('rank', 'min'), highest_rank=('rank', 'max'),
    lowest_score=('score', 'min'), highest_score=('score', 'max'))
about.round(3).assign(flops=about['flops'].map('{:.2g}'.format))

# %% [markdown]
# ## All claims
#
# What was measured with its 95 % interval, what it is compared with, the verdict,
# and what would decide where this study cannot.

# %%
display.Markdown(wording.markdown(it.claims))

# %%
print('\n'.join(f'- {sentence}' for sentence in wording.method()))

# %% [markdown]
# ## Rank and score
#
# Open: untrained networks. A law is drawn through the runs that score above
# their own.

# %%
print('\n'.join(f'- {sentence}' for sentence in
                wording.law_words(it) + wording.form_words(it.forms)))
figures.rank_score(study.every(it.study), it.fit).figure

# %% [markdown]
# ## Rank during training

# %%
events = it.diagnostics.events
figures.rank_steps(it.study.history,
                   marked=events[events['source'] == 'curve']).figure

# %%
print('\n'.join(f'- {sentence}' for sentence in wording.event_words(events)))

# %% [markdown]
# ## Task by task, beside the untrained networks

# %%
figures.trained_untrained(it.study.tasks).figure

# %% [markdown]
# Per task: how far training moves it, and whether RankMe goes with it.

# %%
it.tasks.round(3)

# %% [markdown]
# ## What predicts the score
#
# Every configuration left out in turn.

# %%
it.predictors.round(3)

# %%
print('\n'.join(f'- {sentence}' for sentence in
                wording.width_words(it.study.trained)))

# %% [markdown]
# ## Does an early rank tell the final score?

# %%
print('\n'.join(f'- {sentence}' for sentence in wording.early_words(it)))
if it.early.rungs:
  _, name = it.early.rungs[-1]
  display.display(
      figures.early_final(it.early.runs, name, 'score', 'size').figure)

# %% [markdown]
# ## Where the law fails

# %%
for sentence in wording.trouble_words(it):
  print(f'- {sentence}')
if it.fit:
  above = study.above_baseline(it.study.trained)
  display.display(figures.residuals(
      it.fit, 'rank', above['size'].to_numpy(),
      marked=it.diagnostics.outliers).figure)
