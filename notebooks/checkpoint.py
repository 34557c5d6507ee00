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
# # How good is this checkpoint?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/audiorank/audiorank/blob/main/notebooks/checkpoint.ipynb)
#
# Loads a checkpoint of audiorank, official Dasheng weights or a model of the
# hub; listens to sounds, looks at what the model makes of them, measures the
# effective rank of its embeddings (no labels) and its score on one task (with
# labels), and shows where both fall among the runs of a sweep.
#
# Left as it is it takes a model of 35,000 parameters that comes with the
# package, and sounds that it makes itself: a minute on two CPU cores.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec('audiorank') is None:
  subprocess.run([
      sys.executable, '-m', 'pip', 'install', '-q',
      'audiorank[hub] @ git+https://github.com/audiorank/audiorank'],
      check=True)

# %%
# @markdown A run's folder, a `.pt` or `.safetensors` of Dasheng, or a hub id
# @markdown such as `mispeech/dasheng-base`; empty takes the packaged model.
CHECKPOINT = ''  # @param {type:"string"}
# @markdown A folder of sound files for the rank; empty takes made-up sounds.
SOUNDS = ''  # @param {type:"string"}
# @markdown A folder of a HEAR task; empty takes a made-up one.
TASK = ''  # @param {type:"string"}
# @markdown A sweep's folder, or a URL of its tables; empty takes the sample.
SWEEP = ''  # @param {type:"string"}

# %%
# %matplotlib inline
import pathlib
import tempfile

from IPython import display
import jax
import numpy as np

import audiorank
from audiorank import audio
from audiorank import data
from audiorank import figures
from audiorank import prepare
from audiorank import rankme
from audiorank import records
from audiorank import synth
from audiorank.analysis import law
from audiorank.analysis import study
from audiorank.hear import tasks as hear_tasks
from audiorank.report import wording

model = audiorank.load(CHECKPOINT or records.SAMPLE / 'model')
m = model.config.model
print(f'en{m.width}-{m.depth}, {m.target_frames / 100:g} s of positions; '
      f'jax {jax.__version__} on {jax.devices()[0].device_kind}')

# %% [markdown]
# ## Sounds
#
# The made-up world is a function of its seed: these are the recordings that
# the packaged model was trained on, and the task is one that it never saw.

# %%
work = pathlib.Path(tempfile.mkdtemp())
if not SOUNDS:
  synth.write_audio(work / 'audio', hours=.6, seed=0, workers=1)
if not TASK:
  synth.write_tasks(work, seed=0, clips_per_task=(300, 100, 400),
                    names=['temporal_rhythm'], workers=1)
prepare.run(SOUNDS or work / 'audio', work / 'corpus', workers=1)
corpus = data.load(work / 'corpus')
crop = int(min(10.08, m.target_frames / 100) * 16_000)
available = int(np.maximum(corpus.records['samples'] // crop, 1).sum())
wave_NS, recording_N = data.sample(corpus, min(1000, available), crop, 0)
print(f'{len(wave_NS)} clips of {crop / 16_000:.2f} s from '
      f'{len(np.unique(recording_N))} recordings')

# %%
clip_S = wave_NS[0].astype(np.float32) / 32768
display.display(display.Audio(clip_S, rate=16_000))
ax = figures.spectrogram(audio.log_mel(clip_S[None])[0])
ax.figure

# %% [markdown]
# ## What the model makes of them
#
# One embedding a clip: the time mean of its tokens. On the map, clips of one
# recording share a colour; only the two largest directions are seen.

# %%
z_ND = model.embed(wave_NS)
some = np.isin(recording_N, np.unique(recording_N)[:8])
names = {r: f'recording {i}' for i, r in
         enumerate(np.unique(recording_N[some]))}
ax = figures.embedding_map(z_ND[some],
                           [names[r] for r in recording_N[some]])
ax.figure

# %% [markdown]
# ## Effective rank
#
# RankMe is the exponential of the entropy of the singular values, so at most
# the width. The interval leaves out whole recordings, since clips of one
# recording resemble each other.

# %%
found = audiorank.rankme.estimate(z_ND, groups=recording_N)
print(f'RankMe {found.value:.2f}, 95 % {found.low:.2f} to {found.high:.2f}, '
      f'of {found.n} clips, width {found.width}')
ax = figures.spectra({'this model': rankme.singular_values(z_ND)})
ax.figure

# %% [markdown]
# ## One task

# %%
folder = pathlib.Path(TASK) if TASK else hear_tasks.find(work / 'tasks')[0]
scores = audiorank.scores(model, folder, protocol='logistic')
scores

# %% [markdown]
# ## Where it falls on the law
#
# RankMe may be compared where clips, their number and their length are the
# same: with the packaged model they are the sweep's own. The score here is of
# this task alone, in the sweep and for this model.

# %%
tables = records.load(SWEEP or records.SAMPLE)
own = tables.tasks[tables.tasks['task'] == folder.name]
runs = tables.runs
if len(own):
  score = own.set_index('run_id')['score']
  runs = runs.assign(score=runs['run_id'].map(score), scored_tasks=1)
else:
  print(f'{folder.name}: not a task of this sweep; its mean scores are drawn')
rows = study.read(tables._replace(runs=runs))
fit, lacks = law.fit(rows.trained)
print(fit.report() if fit else
      f'No law is fitted. Needed: {wording.needed_text(lacks)}.')
here = (found.value, float(scores['score'].iloc[0]), 'this model')
ax = figures.rank_score(study.every(rows), fit, here=here)
ax.figure
