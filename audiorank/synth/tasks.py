"""Labelled clips: seven scene tasks, events in time, and long recordings.

Each function makes one clip of a label. Everything but the label is random in
every clip: level, equaliser, room, noise, and other properties of the sound.

Shapes: S samples.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank.synth import recordings
from audiorank.synth import sounds
from audiorank.synth import waves

RATE = waves.RATE
SPLITS = ('train', 'valid', 'test')


class Task(NamedTuple):
  """The description of a task; see hear.tasks.Task."""
  labels: tuple  # Sorted as text.
  samples: int  # Length of a clip.
  embedding: str  # 'scene' or 'event'.
  prediction: str  # 'multiclass' or 'multilabel'.
  evaluation: tuple  # Names of measures; the first is the primary.


CLIP = 16640  # 26 patches of 40 ms.
EVENT_CLIP = 4 * CLIP
LONG_CLIP = 60 * RATE

TASKS = {
    'event_count': Task(tuple(map(str, range(6))), CLIP, 'scene',
                        'multiclass', ('top1_acc', 'mAP')),
    # MIDI notes of two octaves, from A3 (220 Hz) up.
    'pitch': Task(tuple(map(str, range(57, 81))), CLIP, 'scene',
                  'multiclass', ('pitch_acc', 'chroma_acc')),
    'scene': Task(('bell', 'bubbles', 'chirp', 'drum', 'engine', 'insects',
                   'pluck', 'rain', 'voice'), CLIP, 'scene', 'multilabel',
                  ('mAP', 'aucroc', 'd_prime')),
    'sound_events': Task(('beep', 'chirp', 'drum', 'noise', 'voice'),
                         EVENT_CLIP, 'event', 'multilabel',
                         ('event_onset_200ms_fms', 'segment_1s_er')),
    'temporal_order': Task(waves.COURSES, CLIP, 'scene', 'multiclass',
                           ('top1_acc', 'mAP')),
    'temporal_rhythm': Task(('decay_fast', 'decay_slow', 'swell_fast',
                             'swell_slow'), CLIP, 'scene', 'multiclass',
                            ('top1_acc', 'mAP')),
    'texture': Task(sounds.TEXTURES, CLIP, 'scene', 'multiclass',
                    ('top1_acc', 'mAP')),
    'timbre': Task(sounds.TIMBRES, CLIP, 'scene', 'multiclass',
                   ('top1_acc', 'mAP')),
}

# Not in the default set, because a clip has a minute.
LONG = {
    'hive_order': Task(('falling', 'rising'), LONG_CLIP, 'scene',
                       'multiclass', ('top1_acc', 'mAP')),
    'hive_share': Task(('high', 'low'), LONG_CLIP, 'scene', 'multiclass',
                       ('top1_acc', 'mAP')),
}
EVERY = {**TASKS, **LONG}


def _place(g, n, sound_S):
  """Returns n samples with a sound at a random place in silence."""
  wave_S = np.zeros(n)
  at = int(g.integers(n - len(sound_S) + 1))
  wave_S[at:at + len(sound_S)] = sound_S
  return wave_S


def _pitch(g, label):
  # Out of tune by up to a fifth of a semitone.
  f = recordings.midi(int(label)) * 2. ** (g.uniform(-.2, .2) / 12.)
  # Any timbre, so that only the pitch distinguishes the labels.
  family = sounds.TIMBRES[g.integers(len(sounds.TIMBRES))]
  duration = int(g.integers(6000, CLIP + 1))
  return waves.stage(g, _place(g, CLIP, sounds.note(g, family, f, duration)),
                     snr=(5., 30.))


def _timbre(g, label):
  f = recordings.midi(int(g.integers(50, 80)))
  wave_S = np.zeros(CLIP)
  duration = int(g.integers(5000, CLIP + 1))
  # One note or several, so that the number of attacks does not tell.
  for start in range(0, CLIP, duration):
    length = min(duration, CLIP - start)
    if length > 1600:  # A shorter note would be only an attack.
      wave_S[start:start + length] = sounds.note(g, label, f, length)
  return waves.stage(g, wave_S, snr=(5., 30.))


def _texture(g, label):
  return waves.stage(g, sounds.texture(g, label, CLIP), snr=(0., 25.),
                     spread=9.)


def _event_count(g, label):
  count = int(label)
  wave_S = np.zeros(CLIP)
  if count:
    # The total duration and the energy have the same distribution for every
    # count, so that they do not give it away.
    filled = int(g.integers(3200, 9600))
    # Dirichlet: random shares whose sum is one.
    shares = g.dirichlet(np.full(count, 6.))
    lengths = np.maximum((filled * shares).astype(int), 400)
    gaps = g.dirichlet(np.full(count + 1, 2.))
    gaps = (gaps * (CLIP - np.sum(lengths) - 600 * count)).astype(int)
    at = 0
    alike = g.integers(2)  # Whether all events are the same sound.
    seed = g.integers(2 ** 32)
    for i, length in enumerate(lengths):
      at += int(gaps[i])
      source = g
      if alike:
        source = np.random.Generator(np.random.Philox(seed))
      wave_S[at:at + length] = (recordings.event(source, int(length))
                                * waves.decibels(g.uniform(-8., 0.)))
      at += int(length) + 600
  # Seldom in a room, as echoes blur the gaps between events.
  return waves.stage(g, wave_S, snr=(5., 25.), room=.3)


def _temporal_order(g, label):
  return waves.stage(g, recordings.sweep(g, CLIP, label, 1.2, 2.5),
                     snr=(10., 35.))


def _temporal_rhythm(g, label):
  shape, speed = label.split('_')
  low, high = {'slow': (2.5, 4.), 'fast': (8., 12.)}[speed]
  wave_S = recordings.pulse(
      g, recordings.carrier(g, CLIP), {'decay': 'down', 'swell': 'up'}[shape],
      low, high, g.uniform(30., 50.))
  # Never in a room, which adds a decay to every sound.
  return waves.stage(g, wave_S, snr=(10., 35.), room=0.)


def _source(g, label, n):
  """Returns n samples of a label of the scene or event task, RMS one."""
  if label in sounds.TEXTURES:
    return sounds.texture(g, label, n)
  if label == 'noise':
    wave_S = waves.band(g, n) * waves.attack_decay(n, .01, 9.)
  elif label == 'beep':
    f_S = np.full(n, waves.log_uniform(g, 300., 2500.))
    amps_H = np.arange(1, 9) ** -g.uniform(.5, 3.)
    wave_S = waves.harmonic(f_S, amps_H, g.uniform(0., 2. * np.pi, 8))
    wave_S = wave_S * waves.attack_decay(n, .01, 9.)
  elif label == 'chirp':
    span = g.uniform(.6, 1.8) * (2. * g.integers(2) - 1.)
    f_S = waves.log_uniform(g, 500., 2000.) * 2. ** (
        span * np.linspace(-.5, .5, n))
    amps_H = np.arange(1, 9) ** -g.uniform(.5, 3.)
    wave_S = waves.harmonic(f_S, amps_H, g.uniform(0., 2. * np.pi, 8))
    wave_S = wave_S * waves.attack_decay(n, .01, 9.)
  elif label == 'drum':
    wave_S = sounds.drum(g, sounds.DRUMS[g.integers(len(sounds.DRUMS))], n)
  elif label == 'voice':
    f_S = waves.log_uniform(g, 100., 300.) * 2. ** (
        g.uniform(-5., 5.) / 12. * np.linspace(0., 1., n))
    wave_S = sounds.syllable(g, f_S, int(g.integers(len(sounds.VOWELS))))
  else:
    family = {'pluck': 'plucked', 'bell': 'bell'}[label]
    wave_S = sounds.note(g, family, recordings.midi(int(g.integers(50, 84))),
                         n)
  return waves.normalise(wave_S)


def _scene(g, labels):
  wave_S = np.zeros(CLIP)
  for label in labels:
    gain = waves.decibels(g.uniform(-9., 0.))
    if label in sounds.TEXTURES:
      wave_S += gain * sounds.texture(g, label, CLIP)
    else:
      repeat = int(g.integers(1, 4))
      duration = CLIP // repeat
      for i in range(repeat):
        length = min(duration, int(g.integers(2400, 6400)))
        wave_S[i * duration:(i + 1) * duration] += gain * _place(
            g, duration, _source(g, label, length))
  return waves.stage(g, wave_S, snr=(8., 30.))


def _sound_events(g):
  labels = TASKS['sound_events'].labels
  wave_S, marks = np.zeros(EVENT_CLIP), []
  count = int(g.integers(3, 8))
  # One event a slot, so that events do not overlap.
  slot = EVENT_CLIP // count
  for i in range(count):
    label = labels[g.integers(len(labels))]
    duration = int(g.integers(3, 11)) * 1600 // 2  # .15 to .5 s.
    at = i * slot + int(g.integers(max(slot - duration, 1)))
    duration = min(duration, EVENT_CLIP - at)
    wave_S[at:at + duration] += (_source(g, label, duration)
                             * waves.decibels(g.uniform(-9., 0.)))
    marks.append({'label': label, 'start': 1000. * at / RATE,
                  'end': 1000. * (at + duration) / RATE})
  return waves.stage(g, wave_S, snr=(8., 25.), room=.3), marks


def _hive(g, pick, low, high):
  """Returns a minute of hum with calls, like a bee hive.

  Args:
    g: source of random numbers.
    pick: takes the number of a call from 0; returns which of three registers
      it has. They are an octave apart, and 0 is the lowest.
    low, high: seconds of hum between two calls.
  """
  n = LONG_CLIP
  # Up to a semitone, slowly.
  drift = 2. ** (waves.course(g, 'triangle', n, .05, .2) / 12.)
  amps_H = np.arange(1, 41) ** -g.uniform(.6, 1.4)
  wave_S = waves.normalise(waves.harmonic(
      g.uniform(110., 220.) * drift, amps_H, g.uniform(0., 2. * np.pi, 40)))
  base, gain = waves.log_uniform(g, 300., 450.), g.uniform(2., 4.)
  at, count = int(g.integers(RATE, 4 * RATE)), 0
  while True:
    duration = int(g.integers(RATE // 2, RATE))
    if at + duration > n:
      return waves.stage(g, wave_S, snr=(10., 30.))
    f_S = np.full(duration, base * 2. ** (pick(count) + g.uniform(-.15, .15)))
    call_S = waves.harmonic(f_S, np.arange(1, 9) ** -1.,
                            g.uniform(0., 2. * np.pi, 8))
    wave_S[at:at + duration] += gain * waves.normalise(
        call_S * waves.attack_decay(duration, .05, 9., .05))
    at += duration + int(g.integers(int(low * RATE), int(high * RATE)))
    count += 1


def _hive_order(g, label):
  """Returns a clip with the registers in turn, rising or falling.

  Only the order of calls distinguishes the labels. No window shorter than 3 s
  contains parts of two calls, so it takes a long context to hear it.
  """
  first, step = int(g.integers(3)), {'rising': 1, 'falling': -1}[label]
  return _hive(g, lambda i: (first + step * i) % 3, 3., 5.)


def _hive_share(g, label):
  """Returns a clip in which three of four calls are high, or low.

  So a single call gives the right label in three of four clips.
  """
  often, seldom = {'high': (2, 0), 'low': (0, 2)}[label]

  def pick(_: int) -> int:
    if g.uniform() < .75:
      return often
    return seldom

  return _hive(g, pick, .3, 1.)


_SCENES = {'event_count': _event_count, 'hive_order': _hive_order,
           'hive_share': _hive_share, 'pitch': _pitch,
           'temporal_order': _temporal_order,
           'temporal_rhythm': _temporal_rhythm, 'texture': _texture,
           'timbre': _timbre}


def make(seed: int, task: str, split: str,
         index: int) -> tuple[np.ndarray, Any]:
  """Returns a clip of a task and its labels.

  Args:
    seed: of the dataset.
    task: name in EVERY.
    split: of SPLITS.
    index: of the clip.

  Returns:
    wave_S int16 at 16 kHz, and a list of labels; for the event task, of
    {'label', 'start', 'end'} in ms.
  """
  g = waves.generator(seed, f'{task}/{split}', index)
  if task == 'sound_events':
    return _sound_events(g)
  labels = EVERY[task].labels
  if task == 'scene':
    # Every label is present equally often as the first one; up to two others
    # join it.
    present = [labels[index % len(labels)]]
    others = [label for label in labels if label not in present]
    extra = g.permutation(len(others))[:int(g.integers(0, 3))]
    present = sorted(present + [others[i] for i in extra])
    return _scene(g, present), present
  # Classes take turns, so that every split is balanced.
  label = labels[index % len(labels)]
  return _SCENES[task](g, label), [label]
