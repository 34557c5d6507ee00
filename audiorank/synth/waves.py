"""The means of synthesis: random numbers, waves, envelopes, filters, rooms.

Every function that draws takes a numpy Generator first, and draws all its
randomness from it, so that a sound is a pure function of its seed. What would
change a waveform by a jump (counts, kinds, onsets) is drawn as an integer;
everything else is a continuous function of floats, which keeps platforms
within one int16 step of each other. All waves are float64 at 16 kHz.

Shapes: S samples, H harmonics, P partials, F frequency bins.
"""

import zlib

import numpy as np
from scipy import fft
from scipy import signal

from audiorank import config as config_lib

RATE = config_lib.RATE
CEILING = 7800.  # Hz; no partial above it, so that nothing aliases
COURSES = ('down', 'shuffled', 'triangle', 'up')

_TABLE = 2048


def generator(seed: int, kind: str, index: int) -> np.random.Generator:
  """The random numbers of one clip: Philox, keyed by an integer hash.

  Nothing is shared between clips, so neither their order nor the number of
  workers can matter.
  """
  entropy = (seed, zlib.crc32(kind.encode()), index)
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def log_uniform(g: np.random.Generator, low: float, high: float) -> float:
  """A number whose logarithm is uniform between those of low and high."""
  return low * (high / low) ** g.uniform()


def decibels(db: float) -> np.ndarray | float:
  """The amplitude ratio of a level in dB."""
  return 10. ** (db / 20.)


def normalise(wave_S: np.ndarray) -> np.ndarray:
  """The wave at RMS 1; silence stays silence."""
  return wave_S / np.sqrt(np.mean(wave_S ** 2) + 1e-20)


def seconds(n: int) -> np.ndarray:
  """The times of n samples, in seconds."""
  return np.arange(n) / RATE


def smooth(g: np.random.Generator, n: int, rate: float) -> np.ndarray:
  """A random curve in [-1, 1] of n samples that turns `rate` times a second."""
  knots = max(int(n * rate / RATE), 1) + 2
  at_S = np.arange(n) * ((knots - 1) / n)
  return np.interp(at_S, np.arange(knots), g.uniform(-1., 1., knots))


def attack_decay(n: int, attack: float, decay: float,
                 release: float = .01) -> np.ndarray:
  """A linear rise over `attack` s, then an exponential fall of `decay` s."""
  t_S = seconds(n)
  rise_S = np.minimum(t_S / attack, 1.)
  fall_S = np.exp(-np.maximum(t_S - attack, 0.) / decay)
  return rise_S * fall_S * np.minimum((n / RATE - t_S) / release, 1.)


def harmonic(f_S: np.ndarray, amps_H: np.ndarray,
             phases_H: np.ndarray) -> np.ndarray:
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


def modal(g: np.random.Generator, f_P: np.ndarray, amps_P: np.ndarray,
          decays_P: np.ndarray, n: int) -> np.ndarray:
  """A struck body: decaying partials of any frequencies."""
  t_S = seconds(n)
  wave_S = np.zeros(n)
  for f, amp, decay in zip(f_P, amps_P, decays_P):
    phase = g.uniform(0., 2. * np.pi)
    if f < CEILING:
      wave_S += (amp * np.exp(-t_S / decay)
                 * np.sin(2. * np.pi * f * t_S + phase))
  return wave_S


def resonate(wave_S: np.ndarray, f: float, bandwidth: float) -> np.ndarray:
  """A two-pole resonance of gain one at its centre."""
  r = np.exp(-np.pi * bandwidth / RATE)
  b = np.array([1., 0., -1.]) * (1. - r * r) / 2.
  a = np.array([1., -2. * r * np.cos(2. * np.pi * f / RATE), r * r])
  return signal.lfilter(b, a, wave_S)


def noise(g: np.random.Generator, n: int) -> np.ndarray:
  """White noise of RMS one."""
  return g.standard_normal(n)


def colour(g: np.random.Generator, wave_S: np.ndarray, spread: float,
           reverb: float = 0.) -> np.ndarray:
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


def band(g: np.random.Generator, n: int) -> np.ndarray:
  """Noise of a random colour: white, sloped, or one broad hump."""
  wave_S = noise(g, n)
  if g.integers(2):
    wave_S = resonate(wave_S, log_uniform(g, 200., 5000.),
                      log_uniform(g, 200., 3000.))
  return normalise(colour(g, wave_S, 8.))


def course(g: np.random.Generator, kind: str, n: int, low: float,
           high: float) -> np.ndarray:
  """A periodic track in [0, 1], `low` to `high` periods a second.

  All COURSES spend equal time at every height, so that only the order tells
  them apart: rising ramps, falling ramps, triangles, and ramps cut into five
  to seven pieces whose order and directions are redrawn each period. All move
  at the same speed, which a spectrum would show: triangles take two periods.
  """
  rate = log_uniform(g, low, high)
  start = 2. * g.uniform()
  at_S = start + seconds(n) * rate
  if kind == 'shuffled':
    count = int(g.integers(5, 8))
    periods = int(n / RATE * high) + 4
    heights = np.concatenate([g.permutation(count) for _ in range(periods)])
    falls = g.integers(2, size=len(heights))
    piece_S = (at_S * count).astype(np.int64)
    within_S = at_S * count - piece_S
    within_S = np.where(falls[piece_S], 1. - within_S, within_S)
    return (heights[piece_S] + within_S) / count
  if kind == 'triangle':
    return np.abs(at_S % 2. - 1.)
  at_S = at_S % 1.
  return at_S if kind == 'up' else 1. - at_S


def stage(g: np.random.Generator, wave_S: np.ndarray, snr: tuple[float, float],
          room: float = .5, spread: float = 6.,
          levels: tuple[float, float] = (-42., -16.)) -> np.ndarray:
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
