"""Recordings for pretraining: sources of 8 to 30 s, in categories.

The recordings consist of the same sounds as the tasks, in a natural order:
motifs return, rhythms keep their period, voices follow a melody, ramps
continue. Room, equaliser and noise are the same for a whole recording.

Shapes: S samples.
"""

import numpy as np

from audiorank.synth import sounds
from audiorank.synth import waves

RATE = waves.RATE
CATEGORIES = ('music', 'speech', 'texture', 'pulses', 'sweeps', 'events',
              'scene')
# Major, minor and two pentatonic scales, in semitones.
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9),
           (0, 3, 5, 7, 10))


def midi(number: float) -> float:
  """Returns the frequency in Hz of a MIDI note number; 69 is 440 Hz."""
  return 440. * 2. ** ((number - 69) / 12.)


def _add(wave_S, at, sound_S):
  """Adds a sound at a sample; it is cut at the end of the wave."""
  sound_S = sound_S[:max(len(wave_S) - at, 0)]
  wave_S[at:at + len(sound_S)] += sound_S


def _spans(g, n, low, high):
  """Yields consecutive (start, length) that fill n samples, `low` to `high` s.

  A rest shorter than `low` is added to the last one.
  """
  start = 0
  while start < n:
    length = min(int(g.integers(int(low * RATE), int(high * RATE))), n - start)
    if n - start - length < int(low * RATE):
      length = n - start
    yield start, length
    start += length


def music(g: np.random.Generator, n: int) -> np.ndarray:
  """A motif that repeats with variations, one or two voices, maybe drums."""
  wave_S = np.zeros(n)
  # A new tempo, scale and motif in every span.
  for start, length in _spans(g, n, 4., 9.):
    # The shortest note, .1 to .35 s.
    beat = int(g.integers(1600, 5600))
    scale = _SCALES[g.integers(len(_SCALES))]
    for voice in range(int(g.integers(1, 3))):
      family = sounds.TIMBRES[g.integers(len(sounds.TIMBRES))]
      # C3 to B4.
      root = int(g.integers(48, 72))
      count = int(g.integers(3, 7))
      # Up to one step beyond the octave.
      degrees = g.integers(0, len(scale) + 2, count)
      lengths = g.choice((1, 1, 2, 3), count)
      gain = waves.decibels(-6. * voice + g.uniform(-6., 0.))
      at, step = start, 0
      while at < start + length:
        i = step % count
        degree = int(degrees[i])
        if g.uniform() < .15:  # A variation of the motif.
          degree += int(g.integers(-1, 2))
        octave, degree = divmod(degree, len(scale))
        duration = beat * int(lengths[i])
        sound_S = sounds.note(g, family, midi(root + 12 * octave
                                              + scale[degree]), duration)
        _add(wave_S, at, gain * sound_S)
        at, step = at + duration, step + 1
    if g.integers(2):
      # Negative numbers are rests.
      pattern = g.integers(-2, len(sounds.DRUMS), int(g.integers(4, 9)))
      for step, at in enumerate(range(start, start + length, beat)):
        kind = pattern[step % len(pattern)]
        if kind >= 0:
          _add(wave_S, at, sounds.drum(g, sounds.DRUMS[kind], 4000))
  return wave_S


def speech(g: np.random.Generator, n: int) -> np.ndarray:
  """Syllables in phrases of falling pitch, from a small vocabulary."""
  wave_S = np.zeros(n)
  for start, length in _spans(g, n, 5., 12.):
    base = waves.log_uniform(g, 90., 260.)  # Of one speaker, Hz.
    rate = g.uniform(3., 6.)
    # Six words of one to three syllables, which the phrases repeat.
    words = [g.integers(len(sounds.VOWELS), size=int(g.integers(1, 4)))
             for _ in range(6)]
    at = start
    left = phrase = 0  # Syllables of the phrase: still to come, and in all.
    word: np.ndarray = np.zeros(0, int)
    while at < start + length:
      if not left:  # A new phrase, after a pause.
        left = phrase = int(g.integers(4, 12))
        at += int(g.integers(1600, 8000))
      if not len(word):
        word = words[g.integers(len(words))]
      duration = int(RATE / rate * g.uniform(.6, 1.3))
      # Pitch falls by seven semitones during a phrase.
      height = base * 2. ** ((7. * left / phrase + g.uniform(-2., 2.)) / 12.)
      # Within a syllable, pitch glides by a few semitones.
      glide_S = 2. ** (g.uniform(-4., 3.) / 12. * np.linspace(0., 1., duration))
      _add(wave_S, at, waves.decibels(g.uniform(-8., 0.))
           * sounds.syllable(g, height * glide_S, int(word[0])))
      at, left, word = at + duration, left - 1, word[1:]
  return wave_S


def texture(g: np.random.Generator, n: int) -> np.ndarray:
  """One texture after another, each a few seconds."""
  wave_S = np.zeros(n)
  for start, length in _spans(g, n, 2., 6.):
    kind = sounds.TEXTURES[g.integers(len(sounds.TEXTURES))]
    _add(wave_S, start, sounds.texture(g, kind, length)
         * waves.decibels(g.uniform(-10., 0.)))
  return wave_S


def carrier(g: np.random.Generator, n: int) -> np.ndarray:
  """A steady sound to be modulated: a chord, a note's spectrum or noise."""
  kind = int(g.integers(3))
  if kind == 0:
    return waves.band(g, n)
  wave_S = np.zeros(n)
  notes = 1
  if kind == 1:
    notes = int(g.integers(1, 4))
  for _ in range(notes):
    f_S = np.full(n, waves.log_uniform(g, 100., 1200.))
    slope = g.uniform(.3, 1.5)
    # Harmonic h has an amplitude of h^-slope.
    amps_H = np.arange(1, 41) ** -slope
    wave_S += waves.harmonic(f_S, amps_H, g.uniform(0., 2. * np.pi, 40))
  return waves.normalise(wave_S)


def pulse(g: np.random.Generator, wave_S: np.ndarray, kind: str, low: float,
          high: float, depth: float) -> np.ndarray:
  """Returns the wave with a periodic envelope.

  All kinds have the same distribution of levels, so that only their order in
  time differs.

  Args:
    g: source of random numbers.
    wave_S: to be modulated.
    kind: of waves.COURSES.
    low, high: range of the rate, periods per second.
    depth: of the envelope, which is linear in dB.
  """
  track_S = waves.course(g, kind, len(wave_S), low, high)
  # Levels between -depth and 0 dB.
  return wave_S * waves.decibels(depth * (track_S - 1.))


def pulses(g: np.random.Generator, n: int) -> np.ndarray:
  """Sounds that pulse: decays, swells and tremolo at 2 to 14 Hz."""
  wave_S = np.zeros(n)
  for start, length in _spans(g, n, 2., 5.):
    kind = waves.COURSES[g.integers(len(waves.COURSES))]
    _add(wave_S, start, pulse(g, carrier(g, length), kind, 2., 14.,
                              g.uniform(20., 50.)))
  return wave_S


def sweep(g: np.random.Generator, n: int, kind: str, low: float,
          high: float) -> np.ndarray:
  """A tone or a noise band whose log frequency follows a course."""
  track_S = waves.course(g, kind, n, low, high)
  bottom = waves.log_uniform(g, 120., 600.)
  # Up to 1.3 to 3 octaves above the bottom.
  f_S = bottom * 2. ** (g.uniform(1.3, 3.) * track_S)
  amps_H = np.arange(1, 25) ** -g.uniform(.7, 2.5)
  return waves.normalise(
      waves.harmonic(f_S, amps_H, g.uniform(0., 2. * np.pi, 24)))


def sweeps(g: np.random.Generator, n: int) -> np.ndarray:
  """Glides, sirens and arpeggios that keep their period."""
  wave_S = np.zeros(n)
  for start, length in _spans(g, n, 2., 5.):
    kind = waves.COURSES[g.integers(len(waves.COURSES))]
    _add(wave_S, start, sweep(g, length, kind, .7, 3.))
  return wave_S


def event(g: np.random.Generator, n: int) -> np.ndarray:
  """One short sound of any kind, of RMS one over its n samples."""
  kind = int(g.integers(4))
  if kind == 0:
    wave_S = sounds.note(g, sounds.TIMBRES[g.integers(len(sounds.TIMBRES))],
                         midi(int(g.integers(50, 90))), n)
  elif kind == 1:
    wave_S = sounds.drum(g, sounds.DRUMS[g.integers(len(sounds.DRUMS))], n)
  elif kind == 2:
    f_S = np.full(n, waves.log_uniform(g, 100., 350.))
    wave_S = sounds.syllable(g, f_S, int(g.integers(len(sounds.VOWELS))))
  else:
    wave_S = waves.band(g, n) * waves.attack_decay(n, .01, 1.)
  return waves.normalise(wave_S)


def events(g: np.random.Generator, n: int) -> np.ndarray:
  """Single sounds and short repetitions, with gaps of silence."""
  wave_S = np.zeros(n)
  at = int(g.integers(RATE))
  while at < n:
    length = int(g.integers(900, 6400))
    sound_S = event(g, length) * waves.decibels(g.uniform(-10., 0.))
    period = length + int(g.integers(500, 4000))
    for _ in range(int(g.integers(1, 6))):
      if at < n:
        _add(wave_S, at, sound_S)
      at += period
    at += int(g.integers(0, 9600))
  return wave_S


def scene(g: np.random.Generator, n: int) -> np.ndarray:
  """Two or three of the other categories at once, at random levels."""
  # All but the last category, which is `scene` itself.
  kinds = g.permutation(len(CATEGORIES) - 1)[:int(g.integers(2, 4))]
  wave_S = np.zeros(n)
  for kind in kinds:
    layer_S = waves.normalise(_MAKERS[CATEGORIES[kind]](g, n))
    wave_S = wave_S + layer_S * waves.decibels(g.uniform(-12., 0.))
  return wave_S


_MAKERS = {'music': music, 'speech': speech, 'texture': texture,
           'pulses': pulses, 'sweeps': sweeps, 'events': events,
           'scene': scene}


def length(seed: int, index: int) -> int:
  """Returns the number of samples of a recording, without making it."""
  # A generator of its own: lengths are known without making the sound.
  return int(waves.generator(seed, 'length', index).integers(8 * RATE,
                                                              30 * RATE))


def name(index: int) -> str:
  """Returns the path of a recording in the output folder."""
  return f'{CATEGORIES[index % len(CATEGORIES)]}/{index:07d}.flac'


def make(seed: int, index: int) -> np.ndarray:
  """Returns a recording of the dataset: wave_S int16 at 16 kHz.

  Args:
    seed: of the dataset.
    index: of the recording.
  """
  g = waves.generator(seed, 'recording', index)
  wave_S = _MAKERS[CATEGORIES[index % len(CATEGORIES)]](g, length(seed, index))
  return waves.stage(g, wave_S, snr=(10., 50.))
