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
      'audiorank @ git+https://github.com/audiorank/audiorank'], check=True)

# %%
# @markdown A sweep's folder or a URL that holds `runs.parquet`,
# @markdown `history.parquet` and `tasks.parquet`; empty takes the sample.
SWEEP = ''  # @param {type:"string"}

# %%
# %matplotlib inline
from IPython import display

from audiorank import figures
from audiorank import findings
from audiorank import records

made = records.load(SWEEP or records.SAMPLE)
found = findings.find(made)
print('\n'.join(f'- {sentence}' for sentence in found.words))

# %% [markdown]
# ## Rank and score
#
# The law is drawn through the runs that beat their own untrained network. The
# inset says how well the runs bound the score that the law saturates at.

# %%
print(found.fit.report() if found.fit else f'No law: {found.reason}.')
figures.rank_score(made.runs, found.fit).figure

# %% [markdown]
# ## Rank and score against what is scaled

# %%
figures.against(made.runs, 'hours', 'rank').figure

# %%
figures.against(made.runs, 'hours', 'score').figure

# %%
figures.against(made.runs, 'params', 'rank').figure

# %%
figures.against(made.runs, 'params', 'score').figure

# %%
figures.against(made.runs, 'mask_ratio', 'rank').figure

# %% [markdown]
# ## Rank during training
#
# It falls from the untrained network's value before it rises.

# %%
trained = made.history[~made.history['untrained']]
figures.rank_steps(trained, marked=found.trouble.unstable).figure

# %% [markdown]
# ## Task by task, beside the untrained networks

# %%
figures.trained_untrained(made.tasks).figure

# %% [markdown]
# ## Does an early rank tell the final score?

# %%
if found.early.reason:
  print(f'Not asked: {found.early.reason}.')
else:
  _, name = found.early.rungs[0]
  display.display(
      figures.early_final(found.early.runs, name, 'score', 'size').figure)

# %% [markdown]
# ## What predicts the score
#
# RankMe beside what is cheaper to know: every configuration left out in turn.

# %%
found.rivals.round(3)

# %% [markdown]
# ## What the law leaves over

# %%
if found.fit:
  beat = found.runs[found.runs['gain'] > 0]
  display.display(figures.residuals(
      found.fit, 'rank', beat['size'].to_numpy(),
      marked=found.trouble.outliers).figure)
  display.display(figures.profile(found.fit).figure)
