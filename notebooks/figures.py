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
# # The figures, from a table of runs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/audiorank/audiorank/blob/main/notebooks/figures.ipynb)
#
# Every figure of a sweep, drawn from its records: of the sample that comes
# with the package (12 tiny models and 3 untrained networks on the embedded
# world), of a sweep of your own, or of tables under a URL.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec('audiorank') is None:
  subprocess.run([
      sys.executable, '-m', 'pip', 'install', '-q',
      'audiorank[bucket] @ git+https://github.com/audiorank/audiorank'], check=True)

# %%
# @markdown A sweep's folder or a URL that holds `runs.parquet`,
# @markdown `history.parquet` and `tasks.parquet`; empty takes the sample.
SWEEP = ''  # @param {type:"string"}

# %%
# %matplotlib inline
from IPython import display

from audiorank import analysis
from audiorank import figures
from audiorank import records
from audiorank.analysis import study
from audiorank.report import wording

it = analysis.analyze(records.load(SWEEP or records.SAMPLE))
print('\n\n'.join(wording.opening(it)))

# %% [markdown]
# ## What a doubling of RankMe is worth, by what was varied

# %%
figures.slopes(it.claims).figure

# %% [markdown]
# ## Every claim

# %%
display.Markdown(wording.markdown(it.claims))

# %% [markdown]
# ## Rank and score
#
# The law is drawn through the runs that score above their own untrained
# network.

# %%
rows = study.every(it.study)
figures.rank_score(rows, it.fit).figure

# %% [markdown]
# ## Rank and score against what is scaled

# %%
figures.against(rows, 'hours_asked', 'rank').figure

# %%
figures.against(rows, 'hours_asked', 'score').figure

# %%
figures.against(rows, 'params', 'rank').figure

# %%
figures.against(rows, 'params', 'score').figure

# %%
figures.against(rows, 'mask_ratio', 'rank').figure

# %% [markdown]
# ## Rank during training
#
# It falls from the untrained network's value before it rises.

# %%
events = it.diagnostics.events
figures.rank_steps(it.study.history,
                   marked=events[events['source'] == 'curve']).figure

# %% [markdown]
# ## Task by task, beside the untrained networks

# %%
figures.trained_untrained(it.study.tasks).figure

# %% [markdown]
# ## Does an early rank tell the final score?

# %%
print('\n'.join(f'- {sentence}' for sentence in wording.early_words(it)))
if it.early.rungs:
  _, name = it.early.rungs[-1]
  display.display(
      figures.early_final(it.early.runs, name, 'score', 'size').figure)

# %% [markdown]
# ## What predicts the score
#
# RankMe beside what is cheaper to know: every configuration left out in turn.

# %%
it.predictors.round(3)

# %% [markdown]
# ## What the law leaves over, and how well its limit is known

# %%
print('\n'.join(f'- {sentence}' for sentence in
                wording.law_words(it) + wording.trouble_words(it)))
if it.fit:
  above = study.above_baseline(it.study.trained)
  display.display(figures.residuals(
      it.fit, 'rank', above['size'].to_numpy(),
      marked=it.diagnostics.outliers).figure)
  display.display(figures.profile(it.fit).figure)
