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
# (drum, voice, pitch, kind of sound) and four of the embedded world (scene,
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

from audiorank import figures
from audiorank import findings
from audiorank import records
from audiorank.findings import claims
from audiorank.findings import described
from audiorank.findings import within

here = pathlib.Path('results/small_study')
away = ('https://raw.githubusercontent.com/audiorank/audiorank/main/'
        'notebooks/results/small_study')
made = records.load(STUDY or (here if here.is_dir() else away))
# The law and its rivals are of masked autoencoders; other objectives are held
# against it.
of_mae = records.Tables(*(t[t['objective'].str.startswith('mae')]
                          for t in made))
found = findings.find(of_mae)
mae, twins = found.runs, found.twins
trained, _ = findings.score.with_gain(made.runs)

# %% [markdown]
# ## What was run

# %%
about = trained.groupby('experiment').agg(
    runs=('run_id', 'size'), sizes=('size', 'nunique'),
    seeds=('seed', 'nunique'), flops=('flops', 'sum'),
    lowest_rank=('rank', 'min'), highest_rank=('rank', 'max'),
    lowest_score=('score', 'min'), highest_score=('score', 'max'))
print(f'{len(trained)} trained runs and {len(twins)} untrained networks, '
      f"{trained['flops'].sum():.2g} training FLOPs")
about.round(3).assign(flops=about['flops'].map('{:.2g}'.format))

# %% [markdown]
# ## The verdicts
#
# Each claim, what was measured with its 95 % interval, its rivals, and what
# would tell where this study cannot. What is compared differs in one thing
# alone; the noise is that of seeds and of the order of clips.

# %%
verdicts = claims.table(made)
display.Markdown(claims.markdown(verdicts))

# %% [markdown]
# ## Rank and score
#
# Open: untrained networks. A law is drawn through the runs that beat their own.

# %%
print(found.fit.report() if found.fit else f'No law: {found.reason}.')
figures.rank_score(made.runs, found.fit).figure

# %% [markdown]
# ## One thing changed at a time
#
# Within groups of configurations that are equal in all else. Right of zero
# RankMe tells the score as the paper says, left of it the wrong way round.

# %%
by_family = within.families(mae)
figures.slopes(by_family).figure

# %%
by_family.drop(columns='verdict').round(3).assign(verdict=by_family['verdict'])

# %% [markdown]
# ## Rank during training

# %%
figures.rank_steps(made.history[~made.history['untrained']],
                   marked=found.trouble.unstable).figure

# %% [markdown]
# ## Task by task, beside the untrained networks

# %%
figures.trained_untrained(made.tasks).figure

# %% [markdown]
# Per task: how far training moves it, and whether RankMe goes with it.

# %%
described.tasks(made).round(3)

# %% [markdown]
# ## What predicts the score
#
# Every configuration left out in turn.

# %%
found.rivals.round(3)

# %% [markdown]
# ## Does an early rank tell the final score?

# %%
soon = found.early
if soon.reason:
  print(f'Not asked: {soon.reason}.')
else:
  print('\n'.join(f'- {sentence}' for sentence in soon.words))
  _, name = soon.rungs[-1]
  display.display(
      figures.early_final(soon.runs, name, 'score', 'size').figure)

# %% [markdown]
# ## Where the law fails
#
# The runs farthest from the curve, and the families that stand apart.

# %%
for sentence in found.trouble.words:
  print(f'- {sentence}')
display.display(described.farthest(mae, found.fit).round(3))
