"""The front door: import without cost, load, embed, rank, evaluate, fit."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr

import audiorank
from audiorank import embed
from audiorank import records
from audiorank import train_state
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def model():
  c = tiny.shape()
  made = jax.device_get(jax.jit(lambda key: train_state.init(c, key))(
      jax.random.key(0)))
  params = {'params': made.params, 'batch_stats': made.batch_stats}
  return audiorank.Model(records.frozen(c), params, {'weights': ''})


@pytest.fixture(scope='module')
def wave_NS():
  return .1 * np.random.default_rng(0).standard_normal(
      (3, 8000)).astype(np.float32)


def python(*code):
  """Returns what a fresh interpreter prints, as JSON."""
  done = subprocess.run(
      [sys.executable, '-c', '; '.join(code)], capture_output=True, text=True,
      cwd=ROOT, check=True)
  return json.loads(done.stdout)


def test_import_brings_nothing():
  new = python('import json, sys', 'before = set(sys.modules)',
               'import audiorank', 'dir(audiorank)',
               'print(json.dumps(sorted(set(sys.modules) - before)))')
  assert new == ['audiorank']


def test_a_name_means_one_thing_whatever_came_first():
  """No module is a function too: a name is what it is, whoever imports it."""
  facts = python(
      'import json, sys, audiorank', 'first = audiorank.rankme',
      'from audiorank import rankme, evaluate, scores',
      'from audiorank.rankme import spectrum',
      'print(json.dumps([audiorank.rankme is first is rankme, '
      'rankme is sys.modules["audiorank.rankme"], callable(rankme), '
      'audiorank.evaluate is evaluate is sys.modules["audiorank.evaluate"], '
      'callable(evaluate), audiorank.scores is scores is evaluate.scores, '
      'rankme.rankme is spectrum.rankme]))')
  assert facts == [True, True, False, True, False, True, True]


def test_unknown_names_are_refused():
  with pytest.raises(AttributeError, match="no 'rnkme': it offers"):
    audiorank.rnkme()
  with pytest.raises(ImportError):
    from audiorank import rnkme  # noqa: F401
  assert set(audiorank.__all__) <= set(dir(audiorank))


def test_embed_takes_files_folders_and_waves_alike(model, wave_NS, tmp_path):
  want_ND = embed.scene(model.config, model.params, wave_NS)
  deep = tmp_path / 'a' / 'b'
  deep.mkdir(parents=True)
  paths = [deep / f'{i}.wav' for i in range(3)]
  for path, wave_S in zip(paths, wave_NS):
    soundfile.write(path, wave_S, 16000, subtype='FLOAT')
  (deep / 'notes.txt').write_text('no sound')
  for sounds in (wave_NS, list(wave_NS), paths, [str(p) for p in paths],
                 tmp_path, (w for w in wave_NS)):
    np.testing.assert_array_equal(model.embed(sounds), want_ND)
  for sounds in (wave_NS[1], paths[1], [paths[1]]):
    # A batch of another size may round otherwise.
    np.testing.assert_allclose(model.embed(sounds), want_ND[1:2], atol=1e-5)


def test_embed_resamples_as_it_is_told(model, wave_NS):
  fast = soxr.resample(wave_NS[0], 16000, 48000, 'HQ')
  z = model.embed(fast, rate=48000)
  want = model.embed(wave_NS[0])
  # White noise up to 8 kHz: the resampler's band edge costs the highest mels.
  cosine = (z @ want.T) / np.linalg.norm(z) / np.linalg.norm(want)
  assert cosine > .99
  int16 = np.rint(wave_NS[0] * 32768).astype(np.int16)
  np.testing.assert_allclose(model.embed(int16), want, atol=2e-3)


def test_an_encoder_of_any_name_embeds_sounds_at_its_own_rate(
    model, wave_NS, tmp_path):
  model.save_pretrained(tmp_path / 'saved')
  encoder = audiorank.encoder(tmp_path / 'saved')
  np.testing.assert_allclose(encoder.embed(wave_NS), model.embed(wave_NS),
                             atol=1e-5)
  assert encoder.width == model.config.model.width
  every = audiorank.encoder(tmp_path / 'saved', layer='all').embed(wave_NS)
  np.testing.assert_allclose(every['final'], encoder.embed(wave_NS), atol=1e-5)
  # One that takes 48 kHz gets three times the samples, of a file as well.
  lengths = []
  fast = encoder._replace(rate=48_000, scene=lambda waves: lengths.append(
      [len(w) for w in waves]) or np.zeros((len(waves), 1)))
  soundfile.write(tmp_path / 'a.wav', wave_NS[0], 16_000)
  fast.embed([wave_NS[0], tmp_path / 'a.wav'])
  assert lengths == [[3 * len(wave_NS[0])] * 2]
  with pytest.raises(ValueError, match='hf:a/b: .* use audiorank.encoder'):
    audiorank.load('hf:a/b')


def test_timestamps(model, wave_NS):
  z_LD, ms_L = model.timestamps(wave_NS[0])
  assert z_LD.shape == (len(ms_L), 32)
  np.testing.assert_allclose(z_LD.mean(0), model.embed(wave_NS[0])[0],
                             atol=1e-5)


@pytest.mark.parametrize('sounds, words', [
    ([], 'no clips'), (np.zeros((2, 3, 4)), 'shape'),
    ([np.zeros(0, np.float32)], 'clip 0: shape'),
    ([np.zeros(999), np.full(999, np.nan)], 'clip 1: NaN'),
    (np.full(999, 2e4), r'peak of 2e\+04'),
    (np.zeros(999, np.int64), 'clip 0: int64'), ('none.wav', 'none.wav')],
    ids=['none', 'cube', 'empty', 'nan', 'loud', 'int64', 'file'])
def test_what_is_no_sound_is_named(model, sounds, words):
  with pytest.raises((ValueError, OSError), match=words):
    model.embed(sounds)


def test_load_says_what_it_expected(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoint: expected'):
    audiorank.load(tmp_path)


def test_fit_takes_tables_and_files(tmp_path):
  rank = np.geomspace(5, 500, 12)
  table = pd.DataFrame({'rank': rank, 'score': .9 - 1.2 * rank ** -.8})
  table.to_csv(tmp_path / 't.csv', index=False)
  table.to_parquet(tmp_path / 't.parquet')
  for data in (table, dict(table), tmp_path / 't.csv', tmp_path / 't.parquet'):
    params = audiorank.fit(data).params
    # The optimum is exact: noise-free points give their law back.
    assert params == pytest.approx({'Q_inf': .9, 'a': 1.2, 'b': .8}, rel=1e-5)
  with pytest.raises(FileNotFoundError, match='none.csv'):
    audiorank.fit(tmp_path / 'none.csv')
  with pytest.raises(FileNotFoundError, match='no runs'):
    audiorank.fit(tmp_path)


TYPED = """
import audiorank
import numpy as np
from typing import assert_type
from audiorank import rankme
from audiorank.laws import Fit
model = audiorank.load('runs/one')
assert_type(model, audiorank.Model)
z = model.embed(['a.wav'])
z = model.embed(np.zeros((2, 16000), np.float32), rate=16000)
assert_type(audiorank.rankme.estimate(z).value, float)
rankme.estimate(z)
audiorank.scores(model, 'tasks', protocol='logistic')
assert_type(audiorank.fit('runs/quickstart'), Fit)
audiorank.figures.spectra({})
"""
WRONG = ('audiorank.load(3)', 'audiorank.rankm(z)',
         "model.embed(['a.wav'], rates=3)", 'audiorank.fit()',
         "model.embed(3)", "audiorank.scores(3, 'tasks')")


# The types of other packages say nothing of ours, and take most of the time.
MYPY = """[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-absl.*,etils.*,flax.*,grain.*,jax.*,matplotlib.*,optax.*,orbax.*,pandas.*,scipy.*]
follow_imports = skip
follow_imports_for_stubs = True
"""


def test_types_of_the_front_door(tmp_path):
  pytest.importorskip('mypy')
  file = tmp_path / 'use.py'
  file.write_text(TYPED + '\n'.join(WRONG) + '\n')
  (tmp_path / 'mypy.ini').write_text(MYPY)
  done = subprocess.run(
      [sys.executable, '-m', 'mypy', f'--config-file={tmp_path}/mypy.ini',
       '--no-error-summary', '--hide-error-context',
       f'--cache-dir={tmp_path}/cache', str(file)],
      capture_output=True, text=True, cwd=ROOT,
      env={**os.environ, 'MYPYPATH': str(ROOT)})
  lines = [int(line.split(':')[1]) for line in done.stdout.splitlines()
           if ': error:' in line]
  first = TYPED.count('\n') + 1
  assert sorted(set(lines)) == list(range(first, first + len(WRONG))), (
      done.stdout + done.stderr)


def test_channels_are_not_clips(model):
  with pytest.raises(ValueError, match='16000 clips of 2 samples'):
    model.embed(np.zeros((16_000, 2), np.float32))
