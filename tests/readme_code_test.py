"""Every Python block of the READMEs runs as it stands there.

What a block takes for granted (a run, a folder of sounds, its own encoder) is
laid where it looks for it.
"""

import json
import pathlib
import shutil

import export_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readme_test
import safetensors.numpy
import soundfile

import audiorank
from audiorank import audio
from audiorank import dasheng
from audiorank import model
from audiorank import objectives
from audiorank import rankme
from audiorank import records
from audiorank import train_state
from audiorank.hear import tasks as hear_tasks
from configs import base

ROOT = readme_test.ROOT
# The laws' page is run in laws_checklist_test.py, the second block of
# dasheng's in tests/peers, that of launch/CLOUD.md in cloud_test.py.
BLOCKS = {'README.md': 1, 'audiorank/README.md': 2,
          'audiorank/dasheng/README.md': 2, 'audiorank/hear/README.md': 3,
          'audiorank/laws/README.md': 2, 'configs/README.md': 2,
          'launch/CLOUD.md': 1}


def blocks(page):
  """Returns the Python blocks of a page."""
  return readme_test.blocks(ROOT / page, 'python')


def test_none_is_left_out():
  found = {str(page.relative_to(ROOT)): len(blocks(page))
           for page in readme_test.PAGES}
  assert {page: n for page, n in found.items() if n} == BLOCKS


def test_the_front_door(tmp_path, monkeypatch, tasks):
  """Of README.md; the run is the packaged one, its sounds are made up."""
  code, = blocks('README.md')
  monkeypatch.chdir(tmp_path)
  pathlib.Path('runs').mkdir()
  shutil.copytree(records.SAMPLE / 'model', 'runs/one')
  export_test.run_on_disk(pathlib.Path('runs/quickstart'),
                          audiorank.load('runs/one'))
  shutil.copytree(tasks / 'timbre-v1-full', 'TASKS/timbre')
  pathlib.Path('folder_of_sounds').mkdir()
  rng = np.random.default_rng(0)
  for i in range(128):  # Four a dimension: a rank that needs no warning.
    soundfile.write(f'folder_of_sounds/{i:03}.wav',
                    .1 * rng.normal(size=4000), 16_000)
  names = {'recordings': np.arange(128) // 4}
  exec(code, names)
  assert names['z_ND'].shape == (128, 32)
  assert audiorank.load('released').config == names['model'].config


def test_rank_of_an_array_and_of_a_stream(tmp_path, monkeypatch):
  array, stream = blocks('audiorank/README.md')
  monkeypatch.chdir(tmp_path)
  z_ND = np.random.default_rng(0).normal(size=(256, 16))
  sources = np.arange(256) // 4
  names = {'z_ND': z_ND, 'sources': sources}
  exec(array, names)
  assert names['e'].low < names['e'].value < names['e'].high
  # Half of the clips here in two batches, half on the other host.
  there = rankme.update(rankme.init(16), z_ND[128:], groups=sources[128:])
  rankme.save(there, 'other_host.npz')
  names['batches'] = [(z_ND[a:a + 64], sources[a:a + 64]) for a in (0, 64)]
  exec(stream.replace('768', '16'), names)
  assert rankme.rankme(names['state']) == pytest.approx(
      rankme.rankme(z_ND), rel=1e-9)


def test_official_weights_both_ways(tmp_path, monkeypatch):
  """Of a file with the base model's width, two blocks deep."""
  code, _ = blocks('audiorank/dasheng/README.md')
  monkeypatch.chdir(tmp_path)
  config = base.get_config('en768-2')
  shapes = jax.eval_shape(lambda key: train_state.init(config, key),
                          jax.random.key(0))
  rng = np.random.default_rng(0)
  params = {kind: {'encoder': jax.tree.map(
      lambda x: rng.random(x.shape, np.float32), tree['encoder'])}
            for kind, tree in (('params', shapes.params),
                               ('batch_stats', shapes.batch_stats))}
  want = dasheng.to_state_dict(config, params)
  safetensors.numpy.save_file(want, 'dasheng_base.safetensors')
  names = {}
  # The other ending needs torch: tests/peers has it.
  exec(code.replace(".pt'", ".safetensors'"), names)
  assert names['config'].model.heads == 12
  assert set(names['state']) == set(want)
  jax.tree.map(np.testing.assert_array_equal, names['state'], want)


def test_a_probe_of_ones_own_embeddings(tmp_path, monkeypatch, tasks):
  code, cache, _ = blocks('audiorank/hear/README.md')
  monkeypatch.chdir(tmp_path)
  shutil.copytree(tasks / 'timbre-v1-full', 'tasks/esc50-v2.0.0-full')
  names = {'np': np, 'encode': lambda wave_S: np.abs(np.fft.rfft(
      wave_S, 64)).astype(np.float32)}
  exec(code, names)
  assert names['result']['protocol'] == 'hear'
  assert 0 <= names['result']['score'] <= 1
  fields = ('jax_compilation_cache_dir',
            'jax_persistent_cache_min_compile_time_secs',
            'jax_persistent_cache_min_entry_size_bytes')
  before = {field: getattr(jax.config, field) for field in fields}
  try:
    exec(cache.replace('...', f'{str(tmp_path)!r}'), {'jax': jax})
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  finally:
    for field, value in before.items():
      jax.config.update(field, value)


def test_the_task_of_hears_page(tmp_path, monkeypatch):
  *_, code = blocks('audiorank/hear/README.md')
  monkeypatch.chdir(tmp_path)
  exec(code, {'pathlib': pathlib, 'np': np, 'soundfile': soundfile,
              'json': json})
  found = audiorank.scores(records.SAMPLE / 'model', 'tasks',
                             protocol='logistic')
  assert found['measure'].tolist() == ['top1_acc', 'mAP']
  # Twenty decibels apart: any encoder of a log-mel tells them.
  assert found['score'].min() > .95


def test_the_pictures_of_configs_page(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, _ = blocks('configs/README.md')
  rng = np.random.default_rng(0)
  names = {}
  for split in ('train', 'valid', 'test'):
    names[f'{split}_NYX'] = rng.uniform(0, 1, (6, 8, 8))
    names[f'{split}_labels'] = ['a', 'b'] * 3
  exec(code, names)
  assert (tmp_path / 'pictures/corpus/corpus.json').is_file()
  assert len(hear_tasks.load('pictures/tasks/kind-v1-full').splits) == 3


def test_the_objective_of_configs_page():
  _, code = blocks('configs/README.md')
  known = dict(objectives.OBJECTIVES)
  try:
    exec(code, {'audio': audio, 'model': model, 'jnp': jnp,
                'objectives': objectives})
    c = base.get_config('en32-2')
    c.model.decoder.update({'width': 16, 'depth': 1, 'heads': 2})
    c.model.target_frames, c.data.crop_seconds = 104, .5
    made = jax.eval_shape(lambda key: train_state.init(c, key),
                          jax.random.key(0))
    loss, (stats, _) = jax.eval_shape(
        lambda made, wave_BS: objectives.named('loudness')(
            c, {'params': made.params, 'batch_stats': made.batch_stats},
            wave_BS, jax.random.key(1)), made,
        jax.ShapeDtypeStruct((2, 8000), jnp.float32))
    assert loss.shape == () and jax.tree.map(jnp.shape, stats) == (
        jax.tree.map(jnp.shape, made.batch_stats))
  finally:
    objectives.OBJECTIVES.clear()
    objectives.OBJECTIVES.update(known)
