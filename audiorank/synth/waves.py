"""Tools of synthesis: random numbers, waves, envelopes, filters, rooms.

Functions with randomness take a numpy Generator as their first argument, so
that a sound is a pure function of its seed. Properties that change a waveform
abruptly (counts, kinds, onsets) are random integers. Everything else is a
continuous function of floats, so that platforms differ by at most one int16
step. All waves are float64 at 16 kHz.

Shapes: S samples, H harmonics, P partials, F frequency bins.
"""

from collections.abc import Iterable
from typing import Any
import zlib

import numpy as np
from scipy import fft

from audiorank import config as config_lib

RATE = config_lib.RATE
CEILING = 7800.  # Hz. Partials above would alias.
COURSES = ('down', 'shuffled', 'triangle', 'up')

_TABLE = 2048  # Entries of a wavetable.


def generator(seed: int, kind: str, index: int) -> np.random.Generator:
  """Returns the source of random numbers of one clip.

  Args:
    seed: of the dataset.
    kind: of clip.
    index: of the clip.
  """
  # One generator per clip, so that neither the order of clips nor the number of
  # workers matters.
  entropy = (seed, zlib.crc32(kind.encode()), index)
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def log_uniform(g: np.random.Generator, low: float, high: float) -> float:
  """Returns a number whose logarithm is uniform between those of the limits."""
  return low * (high / low) ** g.uniform()


def decibels(db: Any) -> Any:
  """Returns the amplitude ratio of a level in dB, or of an array of levels."""
  return 10. ** (db / 20.)


def normalise(wave_S: np.ndarray) -> np.ndarray:
  """Returns the wave at RMS 1; silence stays silence."""
  return wave_S / np.sqrt(np.mean(wave_S ** 2) + 1e-20)


def seconds(n: int) -> np.ndarray:
  """Returns the times of n samples, in seconds."""
  return np.arange(n) / RATE


def smooth(g: np.random.Generator, n: int, rate: float) -> np.ndarray:
  """Returns a random curve of n samples in [-1, 1].

  Args:
    g: source of random numbers.
    n: samples.
    rate: knots per second, between which the curve is linear.
  """
  knots = max(int(n * rate / RATE), 1) + 2
  at_S = np.arange(n) * ((knots - 1) / n)
  return np.interp(at_S, np.arange(knots), g.uniform(-1., 1., knots))


def attack_decay(n: int, attack: float, decay: float,
                 release: float = .01) -> np.ndarray:
  """Returns an envelope of n samples: linear rise, exponential fall.

  Args:
    n: samples.
    attack: duration of the rise, s.
    decay: time constant of the fall, s.
    release: duration of the linear fade-out at the end, s.
  """
  t_S = seconds(n)
  rise_S = np.minimum(t_S / attack, 1.)
  fall_S = np.exp(-np.maximum(t_S - attack, 0.) / decay)
  return rise_S * fall_S * np.minimum((n / RATE - t_S) / release, 1.)


def harmonic(f_S: np.ndarray, amps_H: np.ndarray,
             phases_H: np.ndarray) -> np.ndarray:
  """Returns a band-limited harmonic sound.

  Args:
    f_S: fundamental frequency over time, Hz.
    amps_H, phases_H: of the harmonics.
  """
  # From a wavetable. Without linear interpolation a rounding error of the phase
  # would become a jump to another entry.
  count = int(min(len(amps_H), CEILING // np.max(f_S), _TABLE // 4))
  spectrum_F = np.zeros(_TABLE // 2 + 1, complex)
  # Below CEILING by construction: no filter has to remove aliases.
  spectrum_F[1:count + 1] = (amps_H * np.exp(1j * phases_H))[:count]
  table = fft.irfft(spectrum_F) * (_TABLE / 2)
  table = np.append(table, table[0])
  # The phase is the integral of the frequency, in periods.
  at_S = np.cumsum(f_S / RATE) % 1. * _TABLE
  entry_S = at_S.astype(np.int64)
  return table[entry_S] + (at_S - entry_S) * np.diff(table)[entry_S]


def modal(g: np.random.Generator, f_P: Iterable[float],
          amps_P: Iterable[float], decays_P: Iterable[float],
          n: int) -> np.ndarray:
  """Returns the sound of a struck body: a sum of decaying partials.

  Args:
    g: source of random numbers, for the phases.
    f_P: frequencies, Hz.
    amps_P: amplitudes.
    decays_P: time constants, s.
    n: samples.
  """
  t_S = seconds(n)
  wave_S = np.zeros(n)
  for f, amp, decay in zip(f_P, amps_P, decays_P):
    phase = g.uniform(0., 2. * np.pi)
    if f < CEILING:
      wave_S += (amp * np.exp(-t_S / decay)
                 * np.sin(2. * np.pi * f * t_S + phase))
  return wave_S


def resonate(wave_S: np.ndarray, f: float, bandwidth: float) -> np.ndarray:
  """Returns the wave through a two-pole resonance of gain one at its centre.

  Args:
    wave_S: to be filtered.
    f: centre, Hz.
    bandwidth: Hz.
  """
  from scipy import signal  # Takes a second, and few commands need it.
  # The radius of the poles gives the bandwidth, their angle the centre; zeros
  # at 0 Hz and at half the rate make the gain at the centre one.
  r = np.exp(-np.pi * bandwidth / RATE)
  b = np.array([1., 0., -1.]) * (1. - r * r) / 2.
  a = np.array([1., -2. * r * np.cos(2. * np.pi * f / RATE), r * r])
  return signal.lfilter(b, a, wave_S)


def noise(g: np.random.Generator, n: int) -> np.ndarray:
  """Returns white noise of RMS one."""
  return g.standard_normal(n)


def colour(g: np.random.Generator, wave_S: np.ndarray, spread: float,
           reverb: float = 0.) -> np.ndarray:
  """Returns the wave through a random smooth equaliser and a random room.

  Args:
    g: source of random numbers.
    wave_S: to be filtered.
    spread: standard deviation of the equaliser's gain, dB. It has one knot per
      octave.
    reverb: reverberation time, s; 0 for no room. The room is exponentially
      decaying noise at a random level.
  """
  n = len(wave_S)
  tail = int(reverb * RATE)
  # Longer than the clip by the reverberation, so that its end does not wrap
  # around to the beginning.
  size = fft.next_fast_len(n + tail, real=True)
  f_F = np.arange(size // 2 + 1) * (RATE / size)
  octave_F = np.log2(np.maximum(f_F, 40.) / 40.)
  knots_db = spread * g.standard_normal(9)
  gain_F = decibels(np.interp(octave_F, np.arange(9), knots_db))
  spectrum_F = fft.rfft(wave_S, size) * gain_F
  if tail:
    # Down by 60 dB (e^-6.9 in amplitude) after the reverberation time.
    room_S = noise(g, tail) * np.exp(-6.9 * seconds(tail) / reverb)
    room_S *= decibels(g.uniform(-18., 0.)) / np.sqrt(np.sum(room_S ** 2))
    spectrum_F *= 1. + fft.rfft(room_S, size)
  return fft.irfft(spectrum_F, size)[:n]


def band(g: np.random.Generator, n: int) -> np.ndarray:
  """Returns noise of a random colour, with or without a broad peak."""
  wave_S = noise(g, n)
  if g.integers(2):
    wave_S = resonate(wave_S, log_uniform(g, 200., 5000.),
                      log_uniform(g, 200., 3000.))
  return normalise(colour(g, wave_S, 8.))


def course(g: np.random.Generator, kind: str, n: int, low: float,
           high: float) -> np.ndarray:
  """Returns a periodic track of n samples in [0, 1].

  Args:
    g: source of random numbers.
    kind: of COURSES: rising ramps, falling ramps, triangles, or ramps that are
      cut into five to seven pieces with another random order and direction in
      every period.
    n: samples.
    low, high: range of the rate, periods per second.
  """
  # All kinds spend the same time at every height and move at the same speed
  # (triangles take two periods), so that they differ only in their order in
  # time and not in their spectrum.
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
  if kind == 'up':
    return at_S
  return 1. - at_S


def stage(g: np.random.Generator, wave_S: np.ndarray, snr: tuple[float, float],
          room: float = .5, spread: float = 6.,
          levels: tuple[float, float] = (-42., -16.)) -> np.ndarray:
  """Returns the wave as a random microphone would record it, int16.

  Args:
    g: source of random numbers.
    wave_S: to be recorded.
    snr: range of the level of the sound above that of coloured noise, dB.
    room: probability of reverberation.
    spread: of the equaliser; see `colour`.
    levels: range of the RMS, dBFS.
  """
  reverb = 0.
  if g.uniform() < room:
    reverb = log_uniform(g, .04, .6)
  wave_S = normalise(colour(g, wave_S, spread, reverb))
  wave_S = wave_S + band(g, len(wave_S)) * decibels(-g.uniform(*snr))
  wave_S = normalise(wave_S) * decibels(g.uniform(*levels))
  # Scaled, not clipped: clipping would add harmonics.
  wave_S = wave_S * min(1., .99 / np.max(np.abs(wave_S)))
  return np.rint(wave_S * 32767.).astype(np.int16)
