"""The synthetic dataset: reproducible, nested, balanced, not too easy."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import librosa
import numpy as np
import pytest
from sklearn import linear_model
from sklearn import model_selection
from sklearn import pipeline
from sklearn import preprocessing
import soundfile

from audiorank import synth
from audiorank.hear import tasks as hear_tasks
from audiorank.synth import recordings
from audiorank.synth import sounds
from audiorank.synth import tasks
from audiorank.synth import waves
from audiorank.synth import write

SMALL = (26, 8, 12)
SCENES = [name for name, task in synth.TASKS.items()
          if task.prediction == 'multiclass']


def contents(folder):
  """Every file below a folder but the markers, as bytes by relative path."""
  return {str(path.relative_to(folder)): path.read_bytes()
          for path in sorted(folder.rglob('*'))
          if path.is_file() and path.name != write.MARKER}


def mean_spectrum(wave_S):
  """The 64-band mean log-mel spectrum of a clip, without its level."""
  mel_MT = librosa.feature.melspectrogram(
      y=wave_S / 32768., sr=16000, n_fft=512, hop_length=160, n_mels=64,
      htk=True, norm=None)
  mean_M = np.mean(10. * np.log10(mel_MT + 1e-10), 1)
  return mean_M - np.mean(mean_M)


def accuracy(z_ND, y_N):
  """The cross-validated accuracy of a linear probe."""
  probe = pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(C=.1, max_iter=300))
  return np.mean(model_selection.cross_val_score(probe, z_ND, y_N, cv=5))


# Clips and recordings


@pytest.mark.parametrize('name', list(synth.TASKS))
def test_clip_depends_on_nothing_but_its_key(name):
  keys = [(0, name, 'train', i) for i in range(8)]
  forwards = [tasks.make(*key) for key in keys]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    backwards = list(pool.map(lambda key: tasks.make(*key), keys[::-1]))[::-1]
  for (one_S, labels), (other_S, same) in zip(forwards, backwards):
    np.testing.assert_array_equal(one_S, other_S)
    assert labels == same


@pytest.mark.parametrize('name', list(synth.TASKS))
def test_seed_split_and_index_each_change_the_clip(name):
  keys = [(0, name, 'train', 0), (1, name, 'train', 0), (0, name, 'test', 0),
          (0, name, 'train', 24)]
  assert len({tasks.make(*key)[0].tobytes() for key in keys}) == len(keys)


def test_clips_are_int16_in_range_and_never_silent():
  for name, task in synth.TASKS.items():
    for index in range(24):
      wave_S, labels = tasks.make(5, name, 'valid', index)
      assert wave_S.dtype == np.int16 and wave_S.shape == (task.samples,)
      assert np.max(np.abs(wave_S.astype(int))) <= .99 * 32767. + 1.
      assert np.std(wave_S) > 16., (name, index, labels)


def test_recordings_are_int16_in_range_of_the_announced_length():
  for index in range(2 * len(recordings.CATEGORIES)):
    wave_S = recordings.make(5, index)
    assert wave_S.dtype == np.int16
    assert wave_S.shape == (recordings.length(5, index),)
    assert 8 * synth.RATE <= len(wave_S) < 30 * synth.RATE
    assert np.max(np.abs(wave_S.astype(int))) <= .99 * 32767. + 1.
    assert np.std(wave_S) > 16.


def test_a_rounding_error_in_every_draw_moves_a_clip_by_one_step(monkeypatch):
  """Another platform's sine may differ in the last bit; the clip must not."""
  clean = [tasks.make(0, name, 'train', i)[0]
           for name in synth.TASKS for i in range(12)]
  steady = waves.log_uniform
  monkeypatch.setattr(waves, 'log_uniform', lambda g, low, high: np.nextafter(
      steady(g, low, high), np.inf))
  ratio = waves.decibels
  monkeypatch.setattr(waves, 'decibels', lambda db: np.nextafter(
      ratio(db), np.inf))
  perturbed = [tasks.make(0, name, 'train', i)[0]
               for name in synth.TASKS for i in range(12)]
  for one_S, other_S in zip(clean, perturbed):
    assert np.max(np.abs(one_S.astype(int) - other_S.astype(int))) <= 1


def test_harmonic_equals_the_sum_of_its_sines():
  """Linear interpolation of 2,048 entries errs by (2 pi k / 2048)^2 / 8."""
  g = waves.generator(0, 'test', 0)
  amps_H, phases_H = g.uniform(0., 1., 20), g.uniform(0., 6.28, 20)
  f_S = np.full(4000, 220.) * np.linspace(1., 1.5, 4000)
  cycles_S = np.cumsum(f_S) / synth.RATE
  k_H = np.arange(1, 21)
  exact_S = sum(a * np.cos(2. * np.pi * k * cycles_S + p)
                for k, a, p in zip(k_H, amps_H, phases_H))
  bound = np.sum(amps_H * (2. * np.pi * k_H / 2048.) ** 2 / 8.)
  got_S = waves.harmonic(f_S, amps_H, phases_H)
  assert np.max(np.abs(got_S - exact_S)) <= bound + 1e-9


def test_no_partial_is_aliased():
  f_S = np.full(16000, 3000.)
  wave_S = waves.harmonic(f_S, np.ones(64), np.zeros(64))
  power_F = np.abs(np.fft.rfft(wave_S)) ** 2
  assert np.sum(power_F[[3000, 6000]]) > .99 * np.sum(power_F)


def test_pitch_is_the_label():
  for index in range(24):
    label = synth.TASKS['pitch'].labels[index]
    f = recordings.midi(int(label))
    wave_S = sounds.note(waves.generator(0, 'test', index), 'clarinet', f,
                         16000)
    power_F = np.abs(np.fft.rfft(wave_S * np.hanning(16000))) ** 2
    assert abs(np.argmax(power_F[:1000]) - f) <= 2.


@pytest.mark.parametrize('kind', waves.COURSES)
def test_courses_spend_equal_time_at_every_height(kind):
  track_S = waves.course(waves.generator(0, 'test', 1), kind, 1600000, 2., 2.)
  shares, _ = np.histogram(track_S, bins=5, range=(0., 1.))
  np.testing.assert_allclose(shares / len(track_S), .2, atol=.01)


# What the tasks ask


@pytest.mark.parametrize('name', SCENES)
def test_classes_take_turns(name):
  labels = synth.TASKS[name].labels
  drawn = [tasks.make(0, name, 'test', i)[1] for i in range(2 * len(labels))]
  assert sorted(drawn) == sorted([[label] for label in labels] * 2)


def test_scene_has_each_label_with_and_without_company():
  drawn = [tasks.make(0, 'scene', 'train', i)[1] for i in range(180)]
  assert {len(present) for present in drawn} == {1, 2, 3}
  for label in synth.TASKS['scene'].labels:
    assert 20 <= sum(label in present for present in drawn) <= 80


@pytest.mark.parametrize('name', ['temporal_order', 'temporal_rhythm'])
def test_mean_spectrum_does_not_tell_the_temporal_class(name):
  """A linear probe stays within three standard errors of chance."""
  labels = synth.TASKS[name].labels
  made = [tasks.make(11, name, 'train', i) for i in range(480)]
  z_ND = np.stack([mean_spectrum(wave_S) for wave_S, _ in made])
  y_N = np.array([present[0] for _, present in made])
  score = accuracy(z_ND, y_N)
  chance = 1. / len(labels)
  error = np.sqrt(chance * (1. - chance) / len(y_N))
  assert score < chance + 3. * error


@pytest.mark.parametrize('name', SCENES)
def test_level_does_not_tell_the_class(name):
  labels = synth.TASKS[name].labels
  made = [tasks.make(12, name, 'train', i) for i in range(240)]
  z_ND = np.array([[np.log(np.std(wave_S))] for wave_S, _ in made])
  y_N = np.array([present[0] for _, present in made])
  score = accuracy(z_ND, y_N)
  chance = 1. / len(labels)
  assert score < chance + 4. * np.sqrt(chance * (1. - chance) / len(y_N))


def test_hive_calls_lie_apart_and_in_their_registers(monkeypatch):
  monkeypatch.setattr(waves, 'stage', lambda g, wave_S, snr: wave_S)
  made = [tasks._hive(waves.generator(0, 'test', 0), pick, 3., 5.)
          for pick in (lambda i: i % 3, lambda i: 4)]
  # The same hum in both: only calls are left of the difference.
  call_S = np.convolve(made[0] != made[1], np.ones(800), 'same') > 0
  edges = np.flatnonzero(np.diff(call_S.astype(int), prepend=0, append=0))
  starts, ends = edges[::2], edges[1::2]
  assert len(starts) >= 10
  assert ((starts[1:] - ends[:-1]) >= 2.9 * synth.RATE).all()
  base, diff_S = None, made[0] - made[1]
  for i, (start, end) in enumerate(zip(starts, ends)):
    power_F = np.abs(np.fft.rfft(diff_S[start:end], 16000))[:4000]
    octave = np.log2(np.argmax(power_F))
    base = octave if base is None else base
    # Within the random detuning of two calls, and a bin.
    assert abs(octave - base - i % 3) < .32


def test_hive_labels_are_the_order_and_the_share(monkeypatch):
  monkeypatch.setattr(tasks, '_hive', lambda g, pick, *_: [
      pick(i) for i in range(12)])
  for index in range(8):
    order, (label,) = tasks.make(0, 'hive_order', 'train', index)
    assert set(np.diff(order) % 3) == {1 if label == 'rising' else 2}
  mean = {'high': [], 'low': []}
  for index in range(200):
    share, (label,) = tasks.make(0, 'hive_share', 'train', index)
    mean[label].append(np.mean(share) / 2)
  # 1,200 calls a label: a standard error of .0125.
  assert np.mean(mean['high']) == pytest.approx(.75, abs=.05)
  assert np.mean(mean['low']) == pytest.approx(.25, abs=.05)


def test_long_tasks_are_made_only_by_name(tmp_path):
  assert not set(synth.LONG) & set(synth.TASKS)
  root = synth.write_tasks(tmp_path, 0, (2, 2, 2), ['hive_order'], 1, False)
  task = hear_tasks.load(root / 'hive_order-v1-full')
  assert task.sample_duration == 60. and task.labels == ('falling', 'rising')
  for path in task.paths['test']:
    wave_S, _ = soundfile.read(path, dtype='int16')
    assert wave_S.shape == (960000,) and np.std(wave_S) > 16.


def test_every_event_is_louder_than_the_gaps_around_it():
  """The marks lie where the sound is: onsets are energy rises."""
  rises = []
  for index in range(12):
    wave_S, marks = tasks.make(0, 'sound_events', 'train', index)
    power_S = np.square(wave_S.astype(float))
    for mark in marks:
      assert 0. <= mark['start'] < mark['end'] <= 4160.
      at = int(round(mark['start'] * 16.))
      if at > 800:
        rises.append(np.mean(power_S[at:at + 800])
                     > np.mean(power_S[at - 800:at]))
  assert len(rises) > 40 and np.mean(rises) > .8


# Files


def test_task_folders_are_hears(tmp_path):
  root = synth.write_tasks(tmp_path, 0, SMALL, workers=1, progress=False)
  assert root == tmp_path / 'tasks'
  assert hear_tasks.find(root) == sorted(
      root / f'{name}-v1-full' for name in synth.TASKS)
  for name, described in synth.TASKS.items():
    folder = root / f'{name}-v1-full'
    task = hear_tasks.load(folder)
    assert task.labels == described.labels == tuple(sorted(described.labels))
    assert task.evaluation == described.evaluation
    assert task.sample_duration == described.samples / 16000
    assert [len(task.files[split]) for split in tasks.SPLITS] == list(SMALL)
    for split in tasks.SPLITS:
      entries = json.loads((folder / f'{split}.json').read_text())
      assert sorted(entries) == [f'{i:05d}.wav' for i in range(len(entries))]
      assert (sorted(p.name for p in (folder / '16000' / split).iterdir())
              == sorted(entries))
      for path in task.paths[split]:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (
            16000, 1, 'PCM_16', described.samples)
  assert not (root / '.partial').exists()


def test_files_hold_the_clips_of_the_world(tmp_path):
  synth.write_tasks(tmp_path, 3, SMALL, ['texture'], 1, False)
  folder = tmp_path / 'tasks' / 'texture-v1-full'
  entries = json.loads((folder / 'valid.json').read_text())
  for i, (file, labels) in enumerate(entries.items()):
    wave_S, _ = soundfile.read(folder / '16000' / 'valid' / file,
                               dtype='int16')
    expected_S, expected = tasks.make(3, 'texture', 'valid', i)
    np.testing.assert_array_equal(wave_S, expected_S)
    assert labels == expected


def test_workers_and_interruption_change_no_byte(tmp_path, monkeypatch):
  names = ['texture', 'sound_events']
  one, two = tmp_path / 'one', tmp_path / 'two'
  synth.write_tasks(one, 0, SMALL, names, 1, False)
  synth.write_audio(one / 'audio', .1, 0, 1, False)
  made, make = [], tasks.make

  def dies(*key):
    made.append(key)
    if len(made) > 30:
      raise KeyboardInterrupt
    return make(*key)

  monkeypatch.setattr(tasks, 'make', dies)
  with pytest.raises(KeyboardInterrupt):
    synth.write_tasks(two, 0, SMALL, names, 1, False)
  monkeypatch.undo()
  with pytest.raises(FileNotFoundError):
    hear_tasks.find(two / 'tasks')
  synth.write_tasks(two, 0, SMALL, names, 2, False)
  synth.write_audio(two / 'audio', .1, 0, 2, False)
  assert contents(one) == contents(two)
  assert len(contents(one / 'audio')) > 10


def test_finished_folders_are_left_alone(tmp_path, monkeypatch):
  write_all = lambda: (
      synth.write_tasks(tmp_path, 0, (2, 2, 2), ['pitch'], 1, False),
      synth.write_audio(tmp_path / 'audio', .01, 0, 1, False))
  write_all()
  stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  for module in (tasks, recordings):
    monkeypatch.setattr(module, 'make', lambda *key: pytest.fail('made again'))
  write_all()
  assert stamps == {
      path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}


def test_more_hours_add_to_fewer(tmp_path):
  out = synth.write_audio(tmp_path / 'grown', .03, 7, 1, False)
  few = contents(out)
  synth.write_audio(out, .08, 7, 1, False)
  many = contents(out)
  assert few.items() < many.items()
  direct = synth.write_audio(tmp_path / 'direct', .08, 7, 1, False)
  assert many == contents(direct)
  marker = json.loads((out / write.MARKER).read_text())
  samples = sum(soundfile.info(path).frames for path in out.rglob('*.flac'))
  assert marker['hours'] == samples / 16000 / 3600 >= .08
  assert marker['recordings'] == len(many)


def test_clips_are_counted_before_they_are_written(tmp_path):
  synth.write_audio(tmp_path, .02, 5, workers=1, progress=False)
  lengths = [soundfile.info(path).frames for path in tmp_path.rglob('*.flac')]
  for samples in (8_000, 16_000 * 20):
    assert synth.clips(.02, 5, samples) == sum(
        max(1, length // samples) for length in lengths)


def test_larger_splits_begin_with_smaller_ones(tmp_path):
  for name, sizes in (('small', (4, 2, 3)), ('large', (9, 3, 5))):
    synth.write_tasks(tmp_path / name, 0, sizes, ['timbre'], 1, False)
  small = contents(tmp_path / 'small')
  large = contents(tmp_path / 'large')
  clips = [path for path in small if path.endswith('.wav')]
  assert len(clips) == 9
  assert all(small[path] == large[path] for path in clips)


@pytest.mark.parametrize('change, words', [
    (dict(hours=0), 'hours: found 0, expected'),
    (dict(hours=float('nan')), 'hours: found nan'),
    (dict(hours='1'), "hours: found '1'"),
    (dict(seed=-1), 'seed: found -1'),
    (dict(seed=1.5), 'seed: found 1.5'),
    (dict(workers=0), 'workers: found 0'),
])
def test_bad_audio_arguments_are_named(tmp_path, change, words):
  arguments = dict(out=tmp_path / 'x', hours=.01, seed=0, workers=1,
                   progress=False) | change
  with pytest.raises(ValueError, match=words):
    synth.write_audio(**arguments)
  assert not list(tmp_path.rglob('*.flac'))


@pytest.mark.parametrize('change, words', [
    (dict(names=['pitch', 'melody']), r"names: found \['pitch', 'melody'\]"),
    (dict(names='pitch'), "names: found 'pitch', expected"),
    (dict(names=[]), r'names: found \[\]'),
    (dict(clips_per_task=(3, 2)), r'clips_per_task: found \(3, 2\)'),
    (dict(clips_per_task=3), 'clips_per_task: found 3'),
    (dict(clips_per_task=(3, 0, 1)), 'three positive integers'),
    (dict(seed='a'), "seed: found 'a'"),
    (dict(workers=1.), 'workers: found 1.0'),
])
def test_bad_task_arguments_are_named(tmp_path, change, words):
  arguments = dict(out=tmp_path / 'x', seed=0, clips_per_task=(1, 1, 1),
                   names=['pitch'], workers=1, progress=False) | change
  with pytest.raises(ValueError, match=words):
    synth.write_tasks(**arguments)
  assert not list(tmp_path.rglob('*.wav'))


def test_folders_made_otherwise_are_refused(tmp_path):
  audio = synth.write_audio(tmp_path / 'audio', .02, 0, 1, False)
  before = contents(audio)
  with pytest.raises(ValueError, match='seed is 0, asked for 1'):
    synth.write_audio(audio, .02, 1, 1, False)
  with pytest.raises(ValueError, match='choose another folder'):
    synth.write_audio(audio, .001, 0, 1, False)
  assert contents(audio) == before
  root = synth.write_tasks(tmp_path, 0, (2, 1, 1), ['pitch'], 1, False)
  with pytest.raises(ValueError, match='choose another folder'):
    synth.write_tasks(tmp_path, 0, (3, 1, 1), ['pitch'], 1, False)
  pathlib.Path(root, 'timbre-v1-full').mkdir()
  with pytest.raises(ValueError, match='not a folder of this dataset'):
    synth.write_tasks(tmp_path, 0, (2, 1, 1), ['timbre'], 1, False)


def test_errors_of_a_writing_process_are_raised():
  paths = [f'/nowhere/{i}' for i in range(16)]
  with pytest.raises(FileNotFoundError, match='/nowhere/'):
    write._map(os.listdir, paths, 2, False, '')
  # One that is killed, by the system for its memory perhaps.
  with pytest.raises(OSError, match='exit code 3.*run the same command again'):
    write._map(os._exit, [3] * 16, 2, False, '')


def test_a_writing_process_does_not_import_jax():
  code = f'import sys; {write.SERVE.split(";")[0]}; print("jax" in sys.modules)'
  assert subprocess.check_output([sys.executable, '-c', code]) == b'False\n'
