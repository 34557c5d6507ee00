"""Any encoder is evaluated, once; the second time its embeddings are there."""

import functools
import importlib
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile

from audiorank import dasheng
from audiorank import embed
from audiorank import embedding_cache
from audiorank import encoders
from audiorank import evaluate
from audiorank import files
from audiorank import model
from audiorank import records
from audiorank.hear import tasks
from audiorank.rankme import record as rank_record
from configs import base
from launch import evaluate as launched
from tests import processes

ROOT = pathlib.Path(__file__).resolve().parents[1]


def write_weights(path, seed=0):
  """A Dasheng file of random weights, 32 wide."""
  config = base.get_config('en32-2')
  config.model.target_frames = 200
  config = records.frozen(config)
  shapes = jax.eval_shape(lambda: model.MAE(config.model).init(
      jax.random.key(0), np.zeros((1, 64, 16), np.float32),
      np.array([[0, 1]]), np.array([[2, 3]])))
  shapes = {kind: {'encoder': tree['encoder']} for kind, tree in shapes.items()}
  rng = np.random.default_rng(seed)

  def fill(path, x):
    kernel = path[-1].key == 'kernel'
    y = rng.normal(0, x.shape[-2] ** -.5 if kernel else .1, x.shape)
    # Statistics as of sound in dB, or tokens are in the hundreds.
    return (y + {'scale': 1, 'mean': -10, 'var': 100}.get(
        path[-1].key, 0)).astype(np.float32)

  params = jax.tree.map_with_path(fill, shapes)
  state = dasheng.to_state_dict(config, params)
  safetensors.numpy.save_file(state, path)
  return path


def write_task(folder, rate=16_000, kind='scene', clips=8):
  """Two tones to tell apart, in HEAR's layout."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  (folder / 'labelvocabulary.csv').write_text('idx,label\n0,high\n1,low\n')
  event = kind == 'event'
  (folder / 'task_metadata.json').write_text(json.dumps({
      'task_name': 'tones', 'embedding_type': kind,
      'prediction_type': 'multilabel' if event else 'multiclass',
      'split_mode': 'trainvaltest', 'splits': ['train', 'valid', 'test'],
      'sample_duration': .5,
      'evaluation': ['event_onset_200ms_fms'] if event else ['top1_acc']}))
  for split in ('train', 'valid', 'test'):
    (folder / f'{rate}' / split).mkdir(parents=True)
    said = {}
    for i in range(clips):
      label, hz = (('high', 3000), ('low', 300))[i % 2]
      time_S = np.arange(rate // 2) / rate
      wave_S = .3 * np.sin(2 * np.pi * hz * time_S + rng.uniform(0, 6))
      wave_S += .01 * rng.standard_normal(len(wave_S))
      soundfile.write(folder / f'{rate}' / split / f'{i}.wav', wave_S, rate)
      said[f'{i}.wav'] = ([{'label': label, 'start': 0, 'end': 400}] if event
                          else [label])
    (folder / f'{split}.json').write_text(json.dumps(said))
  return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return write_weights(tmp_path_factory.mktemp('weights') / 'one.safetensors')


def silent(encoder):
  """The same encoder, which must not be asked."""
  def never(*_):
    raise AssertionError('embedded again')
  return encoder._replace(scene=never, timestamps=never)


@pytest.mark.parametrize('kind', ['scene', 'event'])
def test_embeddings_are_made_once(tmp_path, weights, kind):
  folder, root = write_task(tmp_path / 'tones-v1-full', kind=kind), (
      tmp_path / 'cache')
  encoder = encoders.ours(weights, batch=4)
  task = tasks.load(folder)
  made, hit = evaluate.cached_embeddings(encoder, task, root)
  assert not hit
  found, hit = evaluate.cached_embeddings(silent(encoder), task, root)
  assert hit and list(found) == list(made)
  jax.tree.map(np.testing.assert_array_equal, found, made)
  jax.tree.map(np.testing.assert_array_equal,
               found, evaluate.embeddings(encoder, task))
  # Nobody's weights are cached, nor is anything without a folder.
  assert not evaluate.cached_embeddings(
      encoder._replace(key=''), task, root)[1]
  assert not evaluate.cached_embeddings(encoder, task, '')[1]


@pytest.mark.parametrize('rate', [16_000, 48_000])
def test_clips_below_one_patch_are_warned_of_by_name(tmp_path, rate, caplog):
  """They are scored as HEAR would, but mostly silence is embedded."""
  folder = write_task(tmp_path / 'tones-v1-full', rate)
  patch = rate // 25  # 40 ms.
  clips = folder / f'{rate}' / 'test'
  for name, samples in (('2.wav', patch - 1), ('3.wav', patch), ('5.wav', 9)):
    soundfile.write(clips / name, np.full(samples, .1), rate)
  names, _ = evaluate.clips(tasks.load(folder, rate), 'test', 16_000)
  assert len(names) == 8
  warned = [m for m in caplog.messages if 'shorter' in m]
  line, = warned
  assert line.startswith(f'{folder}: 2 of 8 clips of test are shorter than one '
                         'patch of 40 ms, such as ')
  assert line.endswith(('2.wav: silence is appended',
                        '5.wav: silence is appended'))
  caplog.clear()
  evaluate.clips(tasks.load(folder, rate), 'valid', 16_000)
  assert not caplog.messages


def test_what_changes_embeddings_changes_their_place(tmp_path, weights):
  folder, root = write_task(tmp_path / 'tones-v1-full'), tmp_path / 'cache'
  encoder = encoders.ours(weights)
  get = lambda one: evaluate.cached_embeddings(one, tasks.load(folder), root)
  get(encoder)
  (file,) = root.glob('*/*.npz')
  others = [encoders.ours(weights, layer=0), encoders.ours(weights, batch=3),
            encoders.ours(weights, clamp='batch'),
            encoders.ours(write_weights(tmp_path / 'o.safetensors', seed=1))]
  assert len({encoder.key, *(one.key for one in others)}) == 5
  # The same weights in another file are the same.
  copy = tmp_path / 'copy.safetensors'
  copy.write_bytes(pathlib.Path(weights).read_bytes())
  assert get(silent(encoders.ours(copy)))[1]
  # A sample outside of what the fingerprint reads.
  path = folder / '16000/test/0.wav'
  wave_S, _ = soundfile.read(path, dtype='int16')
  wave_S[3] += 1
  soundfile.write(path, wave_S, 16_000)
  assert not get(encoder)[1] and get(encoder)[1]
  # A damaged file is made again.
  for file in root.glob('*/*.npz'):
    file.write_bytes(file.read_bytes()[:200])
  assert not get(encoder)[1] and get(silent(encoder))[1]
  # What others put there stays, even under names such as ours.
  for name in ('notes.txt', 'exp/train.npz', 'exp/train.json'):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text('{}')
  assert len(embedding_cache.listing(root)) == 2
  assert embedding_cache.clear(root) == 2
  assert sorted(p.name for p in files.walk(root)) == [
      'notes.txt', 'train.json', 'train.npz']


MODULE = '''
import numpy as np

class Model:
  sample_rate = {rate}
  scene_embedding_size = 3
  timestamp_embedding_size = 2

def load_model(path='none'):
  model = Model()
  model.path = path
  return model

def get_scene_embeddings(audio, model):
  assert audio.dtype == np.float32 and np.abs(audio).max() <= 1
  return np.stack([audio.mean(1), audio.std(1), audio[:, ::9].max(1)], 1)

def get_timestamp_embeddings(audio, model):
  z = np.stack([audio[:, ::1600], audio[:, ::1600]], 2)
  ms = np.arange(z.shape[1]) * 100. + 50
  return z, np.broadcast_to(ms, z.shape[:2])
'''


@pytest.fixture
def foreign(tmp_path, monkeypatch):
  """Writes a module with the HEAR API and returns its name."""
  monkeypatch.syspath_prepend(tmp_path / 'modules')
  made = []

  def write(text):
    (tmp_path / 'modules').mkdir(exist_ok=True)
    made.append(f'somebodys_{len(made)}')
    (tmp_path / 'modules' / f'{made[-1]}.py').write_text(text)
    importlib.invalidate_caches()
    return made[-1]

  yield write
  for name in made:
    sys.modules.pop(name, None)


def test_any_module_with_the_api(tmp_path, foreign, weights):
  name = foreign(MODULE.format(rate=16_000))
  encoder = encoders.module(name, str(weights), batch=3)
  assert encoder.about['module'] == name and encoder.key
  folder = write_task(tmp_path / 'tones-v1-full')
  task = tasks.load(folder)
  z = evaluate.embeddings(encoder, task)
  wave_NS = np.stack([w for _, w in tasks.audio(task, 'test')])
  np.testing.assert_allclose(z['test'][:, 1], wave_NS.std(1), rtol=1e-5)
  record = evaluate.score(encoder, folder, {'protocol': 'logistic'})
  assert record['result']['score'] > .4 and record['metric'] == 'top1_acc'
  # Integers, as a corpus has them, are the same clips.
  np.testing.assert_allclose(
      encoder.scene(np.round(wave_NS * 32768).astype(np.int16)), z['test'],
      atol=1e-6)
  z_BLD, ms_BL = encoder.timestamps(wave_NS)
  assert z_BLD.shape == (8, 5, 2) and ms_BL.shape == (8, 5)
  # Without weights to digest nothing may be found again.
  assert encoders.module(name).key == ''
  # Another text of the module is another encoder.
  other = foreign(MODULE.format(rate=16_000) + '\n# changed\n')
  assert encoders.module(other, str(weights)).key != encoder.key


def test_clips_come_at_the_rate_of_the_model(tmp_path, foreign, weights):
  high = write_task(tmp_path / 'high-v1-full', rate=48_000)
  low = write_task(tmp_path / 'low-v1-full', rate=16_000)
  exact = encoders.ours(weights)
  z, want = (evaluate.embeddings(
      exact, tasks.load(folder, evaluate.clip_rate(folder, 16_000)))
             for folder in (high, low))
  # The same tones, but for noise above 8 kHz and where the filter begins.
  assert z['test'].shape == want['test'].shape
  encoder = encoders.module(foreign(MODULE.format(rate=32_000)), str(weights))
  assert evaluate.clip_rate(high, encoder.rate) == 48_000
  z_ND = evaluate.embeddings(encoder, tasks.load(high, 48_000))['test']
  np.testing.assert_allclose(z_ND[:, 1], .3 / np.sqrt(2), rtol=.02)
  with pytest.raises(ValueError, match='clips at 16000 Hz, the model takes 32'):
    evaluate.score(encoder, low, {})


def test_other_modules_are_one_line(foreign):
  with pytest.raises(ValueError, match='--module=no.such'):
    encoders.module('no.such')
  with pytest.raises(ValueError, match='no function get_timestamp_embeddings'):
    encoders.module(foreign(MODULE.format(rate=1).replace(
        'def get_times', 'def times')))
  with pytest.raises(ValueError, match='no whole number scene_embedding_size'):
    encoders.module(foreign(MODULE.format(rate=1).replace(
        'scene_embedding_size', 'width')))
  name = foreign(MODULE.format(rate=1).replace(
      'scene_embedding_size = 3', 'scene_embedding_size = 4'))
  with pytest.raises(ValueError, match=r'of shape \(2, 3\), expected \(2, 4'):
    encoders.module(name).scene(np.zeros((2, 900), np.float32))


def test_ours_are_refused_with_a_reason(tmp_path, weights):
  with pytest.raises(ValueError, match='no step 3: only'):
    encoders.ours(weights, step=3)
  with pytest.raises(ValueError, match="clamp 'all'"):
    encoders.ours(weights, clamp='all')
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    encoders.ours(tmp_path / 'nowhere' / 'at' / 'all')


def test_a_hub_id_is_asked_for_only_where_nothing_lies(monkeypatch, weights):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match=r"^some/one: no such .*audiorank\[hub"):
    encoders.weights('some/one')

  class Hub:

    def snapshot_download(self, name, allow_patterns):
      if name != 'some/one':
        raise OSError('cannot find it\nin the cache')
      folder = weights.parent / 'snapshot'
      folder.mkdir()
      (folder / 'config.json').write_text('{"encoder_kwargs": '
                                          '{"num_heads": 4}}')
      shutil.copy(weights, folder / 'model.safetensors')
      # Nothing that could be code.
      assert not any(name.endswith('.py') or '*' in name
                     for name in allow_patterns)
      return str(folder)

  monkeypatch.setitem(sys.modules, 'huggingface_hub', Hub())
  config, _, about = encoders.weights('some/one')
  assert config.model.heads == 4 and about['kind'] == 'hub'
  with pytest.raises(ValueError, match='some/two: .* cannot find it in the'):
    encoders.weights('some/two')


def test_scenes_of_ours_are_embed_scenes(weights):
  wave_NS = np.random.default_rng(0).uniform(
      -1, 1, (5, 9000)).astype(np.float32)
  config, params, about = encoders.weights(weights)
  assert about['step'] is None and about['kind'] == 'dasheng'
  np.testing.assert_array_equal(
      encoders.ours(weights, batch=2).scene(wave_NS),
      embed.scene(config, params, wave_NS, batch=2))


@pytest.mark.parametrize('kind', [
    'scene', pytest.param('event', marks=pytest.mark.slow)])
def test_every_layer_is_scored_from_one_pass(tmp_path, weights, kind):
  folder = write_task(tmp_path / 'tones-v1-full', kind=kind)
  every = encoders.ours(weights, layer='all')
  assert every.layers == (0, 1, 'final')
  settings = {'protocol': 'logistic'}
  record = evaluate.score(every, folder, settings, tmp_path / 'cache')
  assert [row['layer'] for row in record['layers']] == [0, 1, 'final']
  # Each is that of the layer alone, and the record's own the final layer's.
  one = evaluate.score(encoders.ours(weights, layer=1), folder, settings)
  assert record['layers'][1]['score'] == pytest.approx(one['result']['score'])
  assert record['result']['score'] == record['layers'][2]['score']
  valid = [row['valid'] for row in record['layers']]
  best = record['best']
  assert best['layer'] == record['layers'][int(np.argmax(valid))]['layer']
  assert best['score'] == best['result']['score']
  again = evaluate.score(silent(every), folder, settings, tmp_path / 'cache')
  assert again['cached'] and again['layers'] == record['layers']


def test_weighted_layers_of_a_model(tmp_path, weights):
  folder = write_task(tmp_path / 'tones-v1-full', clips=16)
  # A path, an encoder and its parts are the same model.
  one, two, three = (evaluate.scores(model, tmp_path, protocol='knn')
                     for model in (weights, encoders.opened(weights),
                                   encoders.weights(weights)))
  assert one.equals(two) and one.equals(three)
  record = evaluate.score(encoders.ours(weights, layer='all'), folder,
                          {'protocol': 'weighted', 'seeds': 2})
  assert record['result']['protocol'] == 'weighted'
  assert list(record['result']['layer_weights']) == ['0', '1', 'final']
  assert 'layers' not in record


def test_the_protocol_is_that_of_the_sweep(tmp_path):
  config = base.get_config('en32-2')
  config.eval.update({'protocol': 'logistic', 'max_epochs': 100})
  for seed in (0, 1):
    config.seed = seed
    records.open_run(tmp_path / 'sweep' / f'{seed}', records.frozen(config))
  want = {'protocol': 'logistic', 'grid_points': 8, 'hidden': 1024,
          'max_epochs': 100, 'seed': 42}
  assert evaluate.sweep_protocol(tmp_path / 'sweep') == want
  assert evaluate.sweep_protocol(tmp_path / 'sweep' / '1') == want
  config.seed, config.eval.protocol = 2, 'knn'
  records.open_run(tmp_path / 'sweep' / '2', records.frozen(config))
  with pytest.raises(ValueError, match=r'2 different settings \(knn, logi'):
    evaluate.sweep_protocol(tmp_path / 'sweep')
  with pytest.raises(FileNotFoundError, match='no runs: expected'):
    evaluate.sweep_protocol(tmp_path)


def test_flags_choose_the_protocol(tmp_path):
  config = base.get_config('en32-2')
  config.eval.protocol = 'logistic'
  run = tmp_path / 'sweep' / 'a'
  records.open_run(run, records.frozen(config))
  (run / 'checkpoints' / '3').mkdir(parents=True)
  with processes.flags_of(launched, checkpoint=str(run / 'checkpoints' / '3')):
    assert launched.protocol()['protocol'] == 'logistic'
    with processes.flags_of(launched, protocol='fewshot', shots=['8', '32']):
      settings = launched.protocol()
      assert settings['protocol'] == 'fewshot' and settings['shots'] == [8, 32]
  with processes.flags_of(launched, checkpoint='hf:some/one'):
    assert launched.protocol() == {'protocol': 'hear', 'grid_points': 8}
    with processes.flags_of(launched, like=str(run.parent), grid_points=2):
      assert launched.protocol()['protocol'] == 'logistic'
      assert launched.protocol()['grid_points'] == 2
      with processes.flags_of(
          launched, protocol='knn', tasks='y'), pytest.raises(
              ValueError, match='--like takes the protocol of a sweep'):
        launched.check()
    with processes.flags_of(launched, step=3, tasks='y'), pytest.raises(
        ValueError, match='cannot be combined with hf:some/one'):
      launched.check()


def test_every_measure_has_a_word_of_what_it_says():
  z_ND = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
  fields = {**rank_record.rank_fields(z_ND, np.arange(60), 'final'),
            'neighbourhood': rank_record.neighbourhood(z_ND)}
  names = {*fields['rank']['siblings'], *fields['directions'],
           *fields['neighbourhood']} - {'rankme'}
  assert names <= set(launched.MEANINGS)
  lines = {line.split()[0]: line for line in launched.rank_lines(fields)
           if line.strip()}
  for name in names:
    assert lines[name].endswith(launched.MEANINGS[name])
  # RankMe itself, raw and centred, with its interval.
  low, high = fields['rank']['low'], fields['rank']['high']
  assert f'[{low:.3f}, {high:.3f}]' in launched.rank_lines(fields)[0]


def test_the_command_says_what_it_did(server, tmp_path, weights):
  write_task(tmp_path / 'tasks' / 'tones-v1-full')
  args = [f'--checkpoint={weights}', f'--tasks={tmp_path}/tasks',
          '--protocol=logistic', '--out', tmp_path / 'out']
  command = functools.partial(server.run, tmp_path, 'evaluate',
                              AUDIORANK_CACHE=str(tmp_path / 'cache'))
  args.append('--features')
  first, second = command(*args), command(*args)
  assert first.returncode == second.returncode == 0, first.stderr
  assert '(logistic)' in first.stdout
  assert '(logistic, cached embeddings)' in second.stdout
  assert '\n  mfcc ' in first.stdout and '\n  log_mel ' in second.stdout
  assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]
  (path,) = (tmp_path / 'out').iterdir()
  record = records.read_json(path)
  assert record['encoder']['checkpoint'] == str(weights)
  assert {'step', 'layer', 'clamp', 'weights'} <= set(record['encoder'])
  assert {'audiorank', 'jax', 'backend'} <= set(record['versions'])
  scored = record['tones-v1-full']
  assert scored['cached'] and scored['result']['protocol'] == 'logistic'
  result = scored['result']
  assert result['score'] == result['scores']['top1_acc']
  assert 0 <= result['low'] < result['score'] <= result['high'] == 1
  # The score stands with its interval, its clips and chance.
  assert (f"{result['score']:.4f}  [{result['low']:.4f}, 1.0000], chance "
          '0.5000  8 clips (logistic)') in first.stdout
  listed = command('--cached')
  assert 'tones-v1-full-' in listed.stdout
  assert '1 deleted' in command('--clear_cache').stdout
  assert not list((tmp_path / 'cache').rglob('*.npz'))


def test_features_need_no_network(tmp_path, monkeypatch):
  librosa = pytest.importorskip('librosa')
  rng = np.random.default_rng(0)
  waves = [rng.standard_normal(n).astype(np.float32) * .1
           for n in (300, 8000, 16_000, 16_000)]
  mel, mfcc = encoders.features('log_mel'), encoders.features('mfcc')
  assert mel.scene(waves).shape == (4, 64)
  x_DT = librosa.feature.mfcc(y=waves[1], sr=16_000)
  want_D = np.r_[x_DT.mean(1), x_DT.std(1)]
  # The same sums in one batch and alone: float32 rounding of values to 100.
  np.testing.assert_allclose(mfcc.scene(waves)[1], want_D, atol=1e-3)
  # A clip does not depend on the others, nor on integers or floats.
  np.testing.assert_allclose(mel.scene(waves)[2], mel.scene(waves[2:3])[0],
                             atol=1e-4)
  z_BLD, ms_BL = mel.timestamps(waves[3][None])
  assert z_BLD.shape == (1, 25, 64) and ms_BL[0, :2].tolist() == [20, 60]
  assert mel.key and mel.key != mfcc.key
  with pytest.raises(ValueError, match="features 'cqt': expected one of"):
    encoders.features('cqt')


def test_features_are_scored_once(tmp_path, monkeypatch):
  pytest.importorskip('librosa')
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path / 'cache'))
  folder = write_task(tmp_path / 'tones-v1-full')
  settings = {'protocol': 'logistic'}
  first = evaluate.feature_score('mfcc', folder, settings)
  assert first['result']['score'] == 1  # Two tones: MFCC are enough.
  monkeypatch.setattr(evaluate, 'score', None)  # It must not be asked again.
  again = evaluate.feature_score('mfcc', folder, settings)
  assert again['result']['resamples'] == first['result']['resamples']
  monkeypatch.undo()
  monkeypatch.setenv('AUDIORANK_CACHE', str(tmp_path / 'cache'))
  # While another process computes it, nobody else does.
  (path,) = (tmp_path / 'cache' / 'scores').glob('*.json')
  path.unlink()
  with open(path.with_suffix('.lock'), 'a') as file:
    files.lock(file)
    assert evaluate.feature_score('mfcc', folder, settings) is None
  # Other clips are another score.
  soundfile.write(folder / '16000/test/0.wav', np.zeros(8000), 16_000)
  other = evaluate.feature_score('mfcc', folder, settings)
  assert other['task_sha256'] != first['task_sha256']


@pytest.mark.parametrize('args,message', [
    ([], 'expected --checkpoint, --module or --embeddings'),
    (['--checkpoint=x'], 'expected --tasks, --corpus or both'),
    (['--embeddings=z.npy', '--module=x'], '--embeddings cannot be combined'),
    (['--module=x', '--tasks=y', '--layer=3'], 'combined with --module')])
def test_flags_that_do_not_go_together(server, tmp_path, args, message):
  done = server.run(tmp_path, 'evaluate', *args)
  assert done.returncode == 1 and message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
