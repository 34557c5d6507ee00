"""Elementary sounds of the procedural world: float64 waves at 16 kHz.

Every function takes a numpy Generator first and draws all its randomness from
it, so a sound is a pure function of its seed. Choices that change a waveform
by a jump (counts, kinds, onsets) are drawn as integers; everything else is a
continuous function of floats, which keeps platforms within an int16 step of
each other.

Shapes: S samples, H harmonics, F frequencies, P partials, E events.
"""

import zlib

import numpy as np
from scipy import fft
from scipy import signal

RATE = 16000
CEILING = 7800.  # Hz; no partial above it, so that nothing aliases

TIMBRES = ('bell', 'bowed', 'brass', 'clarinet', 'electric', 'flute', 'organ',
           'plucked', 'reed', 'voice')
DRUMS = ('block', 'clap', 'hat', 'kick', 'snare', 'tom')
TEXTURES = ('bubbles', 'crackle', 'engine', 'flutter', 'hiss', 'insects',
            'rain', 'wind')
COURSES = ('down', 'steps', 'triangle', 'up')

# Formants of ten vowels in Hz, after the means of Peterson & Barney (1952).
VOWELS = ((270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480),
          (660, 1720, 2410), (730, 1090, 2440), (570, 840, 2410),
          (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390),
          (490, 1350, 1690))

_TABLE = 2048
_HARMONICS = 64


def generator(seed, kind, index):
  """The random numbers of one clip: Philox, keyed by an integer hash.

  Nothing is shared between clips, so neither their order nor the number of
  workers can matter.
  """
  entropy = (seed, zlib.crc32(kind.encode()), index)
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def log_uniform(g, low, high):
  """A number whose logarithm is uniform between those of low and high."""
  return low * (high / low) ** g.uniform()


def decibels(db):
  """The amplitude ratio of a level in dB."""
  return 10. ** (db / 20.)


def normalise(wave_S):
  """The wave at RMS 1; silence stays silence."""
  return wave_S / np.sqrt(np.mean(wave_S ** 2) + 1e-20)


def seconds(n):
  """The times of n samples, in seconds."""
  return np.arange(n) / RATE


def smooth(g, n, rate):
  """A random curve in [-1, 1] of n samples that turns `rate` times a second."""
  knots = max(int(n * rate / RATE), 1) + 2
  at_S = np.arange(n) * ((knots - 1) / n)
  return np.interp(at_S, np.arange(knots), g.uniform(-1., 1., knots))


def attack_decay(n, attack, decay, release=.01):
  """Linear rise over `attack` s, exponential fall with time constant `decay`."""
  t_S = seconds(n)
  rise_S = np.minimum(t_S / attack, 1.)
  fall_S = np.exp(-np.maximum(t_S - attack, 0.) / decay)
  return rise_S * fall_S * np.minimum((n / RATE - t_S) / release, 1.)


def harmonic(f_S, amps_H, phases_H):
  """A harmonic sound along a track of fundamentals, band-limited.

  Wavetable synthesis; the linear interpolation matters: reading the nearest
  entry would turn a rounding error of the phase into a jump.
  """
  count = int(min(len(amps_H), CEILING // np.max(f_S), _TABLE // 4))
  spectrum_F = np.zeros(_TABLE // 2 + 1, complex)
  spectrum_F[1:count + 1] = (amps_H * np.exp(1j * phases_H))[:count]
  table = fft.irfft(spectrum_F) * (_TABLE / 2)
  table = np.append(table, table[0])
  at_S = np.cumsum(f_S / RATE) % 1. * _TABLE
  entry_S = at_S.astype(np.int64)
  return table[entry_S] + (at_S - entry_S) * np.diff(table)[entry_S]


def modal(g, f_P, amps_P, decays_P, n):
  """A struck body: decaying partials of any frequencies."""
  t_S = seconds(n)
  wave_S = np.zeros(n)
  for f, amp, decay in zip(f_P, amps_P, decays_P):
    phase = g.uniform(0., 2. * np.pi)
    if f < CEILING:
      wave_S += amp * np.exp(-t_S / decay) * np.sin(2. * np.pi * f * t_S + phase)
  return wave_S


def resonate(wave_S, f, bandwidth):
  """A two-pole resonance of gain one at its centre."""
  r = np.exp(-np.pi * bandwidth / RATE)
  b = np.array([1., 0., -1.]) * (1. - r * r) / 2.
  a = np.array([1., -2. * r * np.cos(2. * np.pi * f / RATE), r * r])
  return signal.lfilter(b, a, wave_S)


def noise(g, n):
  """White noise of RMS one."""
  return g.standard_normal(n)


def colour(g, wave_S, spread, reverb=0.):
  """The wave through a random smooth equaliser and, if asked, a random room.

  `spread` is the standard deviation in dB of the equaliser's knots, which lie
  an octave apart; `reverb` is the reverberation time in seconds of an
  exponentially decaying noise, mixed in at a random level.
  """
  n = len(wave_S)
  tail = int(reverb * RATE)
  size = fft.next_fast_len(n + tail, real=True)
  f_F = np.arange(size // 2 + 1) * (RATE / size)
  octave_F = np.log2(np.maximum(f_F, 40.) / 40.)
  knots_db = spread * g.standard_normal(9)
  gain_F = decibels(np.interp(octave_F, np.arange(9), knots_db))
  spectrum_F = fft.rfft(wave_S, size) * gain_F
  if tail:
    room_S = noise(g, tail) * np.exp(-6.9 * seconds(tail) / reverb)
    room_S *= decibels(g.uniform(-18., 0.)) / np.sqrt(np.sum(room_S ** 2))
    spectrum_F *= 1. + fft.rfft(room_S, size)
  return fft.irfft(spectrum_F, size)[:n]


def band(g, n):
  """Noise of a random colour: white, sloped, or one broad hump."""
  wave_S = noise(g, n)
  if g.integers(2):
    wave_S = resonate(wave_S, log_uniform(g, 200., 5000.),
                      log_uniform(g, 200., 3000.))
  return normalise(colour(g, wave_S, 8.))


def _partials(g, family):
  """Amplitudes and phases of a family's harmonics; two spectra to blend."""
  k_H = np.arange(1, _HARMONICS + 1)
  uneven_H = decibels(2.5 * g.standard_normal(_HARMONICS))
  odd_H = k_H % 2 == 1
  slope = {'bowed': 1.1, 'brass': .7, 'clarinet': 1.2, 'electric': 1.,
           'flute': 2.6, 'organ': .4, 'plucked': .9, 'reed': .6,
           'voice': 1.1}[family] + g.uniform(-.2, .2)
  amps_H = k_H ** -slope * uneven_H
  if family == 'clarinet':
    amps_H *= np.where(odd_H, 1., decibels(-26.))
  if family == 'organ':
    amps_H *= np.isin(k_H, (1, 2, 4, 8, 16))
  if family == 'reed':
    amps_H *= np.where(odd_H, decibels(-14.), 1.)
  if family == 'plucked':
    amps_H *= np.abs(np.sin(np.pi * k_H * g.uniform(.1, .4))) + .05
  return amps_H, amps_H * k_H ** -1.5, g.uniform(0., 2. * np.pi, _HARMONICS)


def note(g, family, f, n):
  """A note of n samples of one of TIMBRES at f Hz, peaking near one.

  Families differ in harmonics, but as much in what an equaliser cannot change:
  attack and decay, vibrato, breath, beating and inharmonicity.
  """
  t_S = seconds(n)
  wobble_S = np.sin(2. * np.pi * g.uniform(4.5, 6.5) * t_S
                    + g.uniform(0., 2. * np.pi))
  if family == 'bell':
    stretch = g.uniform(.9, 1.1)
    f_P = f * np.array([1., 2.756 * stretch, 5.404 * stretch, 8.933, .5])
    decay = log_uniform(g, .12, .5)
    wave_S = modal(g, f_P, g.uniform(.3, 1., 5) * (1., .8, .6, .4, .3),
                   decay * np.array([1., .6, .4, .25, 1.3]), n)
    return wave_S * attack_decay(n, .003, 10.)
  if family == 'electric':
    index_S = g.uniform(1.5, 4.) * np.exp(-t_S / log_uniform(g, .08, .3))
    ratio = (1., 2., 3., 3.5, 7.)[g.integers(5)]
    ratio = min(ratio, CEILING / (2. * f))
    phase_S = 2. * np.pi * f * t_S
    wave_S = np.sin(phase_S + index_S * np.sin(ratio * phase_S))
    return wave_S * attack_decay(n, .004, log_uniform(g, .3, .8))
  bright_H, dull_H, phases_H = _partials(g, family)
  depth = {'bowed': .35, 'voice': .5, 'flute': .15}.get(family, 0.)
  f_S = f * 2. ** (depth * g.uniform(.7, 1.3) / 12. * wobble_S)
  if family == 'voice':
    harmonics_H = f * np.arange(1, _HARMONICS + 1)
    formants = VOWELS[g.integers(len(VOWELS))]
    bright_H = bright_H * sum(
        1. / (1. + ((harmonics_H - c) / 90.) ** 2) for c in formants)
    bright_H = bright_H / np.max(bright_H)
  bright_S = harmonic(f_S, bright_H, phases_H)
  if family in ('brass', 'plucked'):
    dull_S = harmonic(f_S, dull_H, phases_H)
    if family == 'brass':
      mix_S = np.minimum(t_S / g.uniform(.06, .2), 1.)
    else:
      mix_S = np.exp(-t_S / log_uniform(g, .03, .12))
    bright_S = dull_S + mix_S * (bright_S - dull_S)
  if family == 'organ':
    bright_S = bright_S + harmonic(f_S * (1. + g.uniform(.003, .008)),
                                   bright_H, phases_H)
  if family == 'flute':
    breath_S = resonate(noise(g, n), min(2. * f, 6000.), 1500.)
    bright_S = (bright_S * (1. + .3 * wobble_S)
                + breath_S * decibels(g.uniform(-14., -6.)))
  if family == 'reed':
    bright_S = bright_S * (1. + .25 * np.sin(2. * np.pi * g.uniform(18., 30.)
                                             * t_S))
  attack, decay = {
      'bowed': (.12, 9.), 'brass': (.05, 9.), 'clarinet': (.03, 9.),
      'flute': (.08, 9.), 'organ': (.008, 9.), 'plucked': (.002, .25),
      'reed': (.02, 9.), 'voice': (.06, 9.)}[family]
  attack = min(attack * log_uniform(g, .7, 1.4), .4 * n / RATE)
  return bright_S * attack_decay(n, attack, decay * log_uniform(g, .7, 1.4),
                                 .03)


def drum(g, kind, n):
  """One stroke of one of DRUMS, peaking near one, within n samples."""
  t_S = seconds(n)
  if kind in ('kick', 'tom'):
    low, high = {'kick': (45., 75.), 'tom': (90., 260.)}[kind]
    f = log_uniform(g, low, high)
    sweep = f * g.uniform(1., 2.5) * .03
    phase_S = f * t_S - sweep * np.expm1(-t_S / .03)
    wave_S = np.sin(2. * np.pi * phase_S)
    wave_S += .1 * noise(g, n) * np.exp(-t_S / .004)
    return wave_S * attack_decay(n, .002, log_uniform(g, .06, .2))
  if kind == 'block':
    f = log_uniform(g, 700., 2200.)
    return modal(g, (f, f * g.uniform(1.4, 2.6)), (1., .5), (.03, .015), n)
  hiss_S = noise(g, n)
  if kind == 'hat':
    hiss_S = np.diff(hiss_S, 2, prepend=(0., 0.)) / 3.
    return hiss_S * attack_decay(n, .001, log_uniform(g, .015, .09))
  if kind == 'snare':
    f = log_uniform(g, 160., 260.)
    body_S = modal(g, (f, 1.7 * f), (1., .6), (.06, .04), n)
    return body_S + .5 * hiss_S * attack_decay(n, .001,
                                               log_uniform(g, .05, .14))
  gap = g.uniform(.009, .014)
  late_S = np.maximum(t_S - 3. * gap, 0.)
  burst_S = np.where(t_S < 3. * gap, np.exp(-(t_S % gap) / .003),
                     np.exp(-late_S / log_uniform(g, .03, .09)))
  return resonate(hiss_S * burst_S, log_uniform(g, 900., 1800.), 900.) * 2.


def syllable(g, f_S, vowel):
  """A glottal pulse train along f_S through three formants, with an onset.

  `vowel` indexes VOWELS; the vocal tract's length varies by its own draw.
  """
  n = len(f_S)
  k_H = np.arange(1, 161)
  wave_S = harmonic(f_S, k_H ** -.9, np.zeros(160))
  breath_S = noise(g, n)
  wave_S = wave_S + .05 * breath_S
  tract = g.uniform(.9, 1.15)
  voiced_S = sum(
      gain * resonate(wave_S, tract * formant, width) for formant, width, gain
      in zip(VOWELS[vowel], (70., 100., 150.), (1., .6, .35)))
  voiced_S = normalise(voiced_S) * attack_decay(
      n, g.uniform(.015, .05), 9., g.uniform(.03, .07))
  if g.integers(2):
    length = min(int(g.integers(400, 1400)), n // 3)
    burst_S = resonate(breath_S[:length], log_uniform(g, 1500., 6000.), 1800.)
    burst_S = normalise(burst_S) * attack_decay(length, .004, .04)
    voiced_S[:length] = (voiced_S[:length] * np.linspace(0., 1., length)
                         + g.uniform(.2, .8) * burst_S)
  return voiced_S


def course(g, kind, n, low, high, phase=None):
  """A periodic track in [0, 1], `low` to `high` periods a second.

  All COURSES spend equal time at every height, so that only the order tells
  them apart: rising ramps, falling ramps, triangles, and steps in an order
  redrawn each period.
  """
  rate = log_uniform(g, low, high)
  start = g.uniform() if phase is None else phase
  at_S = start + seconds(n) * rate
  if kind == 'steps':
    count = int(g.integers(5, 8))
    periods = int(n / RATE * high) + 3
    heights = np.concatenate([g.permutation(count) for _ in range(periods)])
    return (heights[(at_S * count).astype(np.int64)] + .5) / count
  at_S = at_S % 1.
  if kind == 'triangle':
    return 1. - np.abs(2. * at_S - 1.)
  return at_S if kind == 'up' else 1. - at_S


def _impulses(g, n, rate, spread):
  """Poisson clicks, `rate` a second, log-normal amplitudes of `spread` dB."""
  wave_S = np.zeros(n)
  count = int(g.poisson(rate * n / RATE))
  at_E = g.integers(n, size=count)
  np.add.at(wave_S, at_E, decibels(spread * g.standard_normal(count))
            * (2. * g.integers(2, size=count) - 1.))
  return wave_S


def texture(g, kind, n):
  """A stationary texture, one of TEXTURES, of RMS one."""
  t_S = seconds(n)
  if kind == 'hiss':
    wave_S = noise(g, n)
  elif kind == 'rain':
    wave_S = _impulses(g, n, log_uniform(g, 250., 600.), 7.)
    wave_S = resonate(wave_S, log_uniform(g, 1500., 5000.), 2500.)
  elif kind == 'crackle':
    clicks_S = _impulses(g, n, log_uniform(g, 10., 30.), 4.)
    wave_S = resonate(clicks_S, log_uniform(g, 1000., 5000.), 900.)
    wave_S = wave_S + .003 * noise(g, n)
  elif kind == 'wind':
    sway_S = smooth(g, n, 6.)
    wave_S = noise(g, n)
    dark_S = resonate(wave_S, 250., 300.) * 4.
    wave_S = dark_S + (.5 + .5 * sway_S) * (.6 * wave_S - dark_S)
    wave_S = wave_S * decibels(9. * smooth(g, n, 5.))
  elif kind == 'flutter':
    rate = log_uniform(g, 9., 20.)
    wave_S = noise(g, n) * decibels(
        14. * np.sin(2. * np.pi * (rate * t_S + g.uniform())))
  elif kind == 'engine':
    f_S = log_uniform(g, 28., 60.) * 2. ** (.1 * smooth(g, n, 3.))
    wave_S = harmonic(f_S, np.ones(160), np.zeros(160))
    wave_S = (resonate(wave_S, log_uniform(g, 150., 400.), 200.)
              + resonate(wave_S, log_uniform(g, 600., 2500.), 700.)
              + .15 * noise(g, n))
  elif kind == 'insects':
    rate = log_uniform(g, 25., 60.)
    f_S = log_uniform(g, 2500., 6000.) * 2. ** (.05 * smooth(g, n, 8.))
    buzz_S = .5 + .5 * np.sin(2. * np.pi * rate * t_S)
    chirp_S = np.sin(2. * np.pi * (g.uniform(3., 7.) * t_S + g.uniform()))
    wave_S = (np.sin(2. * np.pi * np.cumsum(f_S / RATE)) * buzz_S
              * np.clip(3. * chirp_S + 1., 0., 1.) + .02 * noise(g, n))
  else:
    wave_S = .01 * noise(g, n)
    for at in g.integers(n, size=int(g.poisson(log_uniform(g, 12., 30.)
                                               * n / RATE))):
      length = min(int(g.integers(500, 1300)), n - int(at))
      drop_S = seconds(length)
      f = log_uniform(g, 500., 2500.)
      wave_S[at:at + length] += (
          np.sin(2. * np.pi * f * drop_S * (1. + 6. * drop_S))
          * np.exp(-drop_S / .02) * decibels(g.uniform(-12., 0.)))
  return normalise(wave_S)


def stage(g, wave_S, snr, room=.5, spread=6., levels=(-42., -16.)):
  """The wave as a random microphone hears it, in int16.

  A random equaliser and room, coloured noise `snr` dB (a pair: low, high)
  below the sound, and a random gain: RMS uniform over `levels` in dBFS.
  """
  reverb = log_uniform(g, .04, .6) if g.uniform() < room else 0.
  wave_S = normalise(colour(g, wave_S, spread, reverb))
  wave_S = wave_S + band(g, len(wave_S)) * decibels(-g.uniform(*snr))
  wave_S = normalise(wave_S) * decibels(g.uniform(*levels))
  wave_S = wave_S * min(1., .99 / np.max(np.abs(wave_S)))
  return np.rint(wave_S * 32767.).astype(np.int16)
