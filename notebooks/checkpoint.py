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
# Loads a checkpoint of audiorank, official Dasheng weights or a public encoder
# such as wav2vec 2.0; plays a sound, maps the embeddings, measures their
# effective rank (without labels) and their score on one task (with labels), and
# shows where both fall among the runs of a sweep.
#
# Without changes it uses a model of 35,000 parameters from the package and
# synthetic sounds: a minute on two CPU cores.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec('audiorank') is None:
  subprocess.run([
      sys.executable, '-m', 'pip', 'install', '-q',
      'audiorank[bucket,transformers] @ git+https://github.com/audiorank/audiorank'],
      check=True)

# %%
# @markdown A run's folder (local or `gs://`), a `.pt` or `.safetensors` of
# @markdown Dasheng, or a public encoder: `hf:facebook/wav2vec2-base`,
# @markdown `hf:mispeech/dasheng-base`, ... Empty takes the packaged model.
CHECKPOINT = ''  # @param {type:"string"}
# @markdown A folder of sound files for RankMe; empty takes synthetic sounds.
SOUNDS = ''  # @param {type:"string"}
# @markdown A folder of a HEAR task; empty takes a synthetic one.
TASK = ''  # @param {type:"string"}
# @markdown A sweep's folder (local or `gs://`), or a URL of its tables; empty
# @markdown takes the packaged sweep.
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
from audiorank import files
from audiorank import prepare
from audiorank import rankme
from audiorank import records
from audiorank import synth
from audiorank.analysis import law
from audiorank.analysis import study
from audiorank.hear import tasks as hear_tasks
from audiorank.report import wording

if any(name.startswith('gs://') for name in (CHECKPOINT, SOUNDS, TASK, SWEEP)
       ) and importlib.util.find_spec('google.colab'):
  from google.colab import auth
  auth.authenticate_user()
# One call for every kind of checkpoint.
encoder = audiorank.encoder(CHECKPOINT or records.SAMPLE / 'model')
name = CHECKPOINT or 'the packaged model'
print(f'{name}: {encoder.width} wide, takes {encoder.rate / 1000:g} kHz; '
      f'jax {jax.__version__} on {jax.devices()[0].device_kind}')

# %% [markdown]
# ## Sounds
#
# The synthetic sounds are a function of their seed: these are the recordings
# that the packaged model was trained on. It was not trained on the task. Clips
# are as long as those of the sweep, because RankMe depends on their length.

# %%
work = pathlib.Path(tempfile.mkdtemp())
if not SOUNDS:
  synth.write_audio(work / 'audio', hours=.6, seed=0, workers=1)
if not TASK:
  synth.write_tasks(work, seed=0, clips_per_task=(300, 100, 400),
                    names=['temporal_rhythm'], workers=1)
prepare.run(SOUNDS or work / 'audio', work / 'corpus', workers=1)
corpus = data.load(work / 'corpus')
tables = records.load(SWEEP or records.SAMPLE)
crop = int(tables.runs['crop_seconds'].median() * 16_000)
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
# ## Embeddings
#
# Each clip has one embedding, for most models the mean of its tokens. On the
# map, clips of one recording have one colour. It shows the two directions of
# the largest variance.

# %%
z_ND = encoder.embed(wave_NS)
some = np.isin(recording_N, np.unique(recording_N)[:8])
labels = {r: f'recording {i}' for i, r in
          enumerate(np.unique(recording_N[some]))}
ax = figures.embedding_map(z_ND[some],
                           [labels[r] for r in recording_N[some]])
ax.figure

# %% [markdown]
# ## Effective rank
#
# RankMe is the exponential of the entropy of the singular values, so at most
# the width. The interval leaves out whole recordings, since clips of one
# recording resemble each other.

# %%
rank = audiorank.rankme.estimate(z_ND, groups=recording_N)
print(f'RankMe {rank.value:.2f}, 95 % {rank.low:.2f} to {rank.high:.2f}, '
      f'of {rank.n} clips, width {rank.width}')
ax = figures.spectra({name: rankme.singular_values(z_ND)})
ax.figure

# %% [markdown]
# ## One task

# %%
if TASK:
  folder = files.path(TASK)
else:
  folder = hear_tasks.find(work / 'tasks')[0]
scores = audiorank.scores(encoder, folder, protocol='logistic')
scores

# %% [markdown]
# ## Where it falls on the law
#
# Values of RankMe are comparable only for the same clips, number of clips and
# length: without changes above they are those of the packaged sweep. The score
# is that of this task alone, both for the sweep and for this model.

# %%
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
here = (rank.value, float(scores['score'].iloc[0]), name)
ax = figures.rank_score(study.every(rows), fit, here=here)
ax.figure
