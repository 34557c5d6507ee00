"""The sounds of the synthetic dataset: notes, strokes, syllables, textures.

Shapes: S samples, H harmonics, P partials, E events.
"""

import numpy as np

from audiorank.synth import waves

TIMBRES = ('bell', 'bowed', 'brass', 'clarinet', 'electric', 'flute', 'organ',
           'plucked', 'reed', 'voice')
DRUMS = ('block', 'clap', 'hat', 'kick', 'snare', 'tom')
TEXTURES = ('bubbles', 'crackle', 'engine', 'flutter', 'hiss', 'insects',
            'rain', 'wind')

# Formants of ten vowels in Hz, after the means of Peterson & Barney (1952).
VOWELS = ((270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480),
          (660, 1720, 2410), (730, 1090, 2440), (570, 840, 2410),
          (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390),
          (490, 1350, 1690))

# Those above waves.CEILING are left out by waves.harmonic.
_HARMONICS = 64


def _partials(g, family):
  """Returns (bright, dull, phases)_H of a family's harmonics.

  The first two are amplitudes of spectra between which a note can move.
  """
  k_H = np.arange(1, _HARMONICS + 1)
  # No two instruments of a family are equal.
  uneven_H = waves.decibels(2.5 * g.standard_normal(_HARMONICS))
  odd_H = k_H % 2 == 1
  slope = {'bowed': 1.1, 'brass': .7, 'clarinet': 1.2, 'electric': 1.,
           'flute': 2.6, 'organ': .4, 'plucked': .9, 'reed': .6,
           'voice': 1.1}[family] + g.uniform(-.2, .2)
  amps_H = k_H ** -slope * uneven_H
  if family == 'clarinet':  # A closed tube has weak even harmonics.
    amps_H *= np.where(odd_H, 1., waves.decibels(-26.))
  if family == 'organ':  # Stops an octave apart.
    amps_H *= np.isin(k_H, (1, 2, 4, 8, 16))
  if family == 'reed':
    amps_H *= np.where(odd_H, waves.decibels(-14.), 1.)
  if family == 'plucked':  # The position of plucking cancels some harmonics.
    amps_H *= np.abs(np.sin(np.pi * k_H * g.uniform(.1, .4))) + .05
  return amps_H, amps_H * k_H ** -1.5, g.uniform(0., 2. * np.pi, _HARMONICS)


def note(g: np.random.Generator, family: str, f: float, n: int) -> np.ndarray:
  """Returns a note, peaking near one.

  Args:
    g: source of random numbers.
    family: one of TIMBRES.
    f: Hz.
    n: samples.
  """
  # Families differ in their harmonics, but also in properties that an equaliser
  # cannot change: attack and decay, vibrato, breath, beating, inharmonicity.
  t_S = waves.seconds(n)
  wobble_S = np.sin(2. * np.pi * g.uniform(4.5, 6.5) * t_S
                    + g.uniform(0., 2. * np.pi))
  if family == 'bell':  # Inharmonic partials, roughly those of a free bar.
    stretch = g.uniform(.9, 1.1)
    f_P = f * np.array([1., 2.756 * stretch, 5.404 * stretch, 8.933, .5])
    decay = waves.log_uniform(g, .12, .5)
    wave_S = waves.modal(
        g, f_P, g.uniform(.3, 1., 5) * (1., .8, .6, .4, .3),
        decay * np.array([1., .6, .4, .25, 1.3]), n)
    return wave_S * waves.attack_decay(n, .003, 10.)
  if family == 'electric':  # Frequency modulation.
    index_S = g.uniform(1.5, 4.) * np.exp(-t_S / waves.log_uniform(g, .08, .3))
    ratio = (1., 2., 3., 3.5, 7.)[g.integers(5)]
    ratio = min(ratio, waves.CEILING / (2. * f))  # Against aliasing.
    phase_S = 2. * np.pi * f * t_S
    wave_S = np.sin(phase_S + index_S * np.sin(ratio * phase_S))
    return wave_S * waves.attack_decay(n, .004, waves.log_uniform(g, .3, .8))
  bright_H, dull_H, phases_H = _partials(g, family)
  # Vibrato in semitones.
  depth = {'bowed': .35, 'voice': .5, 'flute': .15}.get(family, 0.)
  f_S = f * 2. ** (depth * g.uniform(.7, 1.3) / 12. * wobble_S)
  if family == 'voice':
    harmonics_H = f * np.arange(1, _HARMONICS + 1)
    formants = VOWELS[g.integers(len(VOWELS))]
    # Resonances of the vocal tract at fixed frequencies, whatever the pitch.
    bright_H = bright_H * sum(
        1. / (1. + ((harmonics_H - c) / 90.) ** 2) for c in formants)
    bright_H = bright_H / np.max(bright_H)
  bright_S = waves.harmonic(f_S, bright_H, phases_H)
  # The spectrum of brass gets brighter during the attack, that of a plucked
  # string duller as it decays.
  if family in ('brass', 'plucked'):
    dull_S = waves.harmonic(f_S, dull_H, phases_H)
    if family == 'brass':
      mix_S = np.minimum(t_S / g.uniform(.06, .2), 1.)
    else:
      mix_S = np.exp(-t_S / waves.log_uniform(g, .03, .12))
    bright_S = dull_S + mix_S * (bright_S - dull_S)
  if family == 'organ':  # A second, detuned pipe beats with the first.
    bright_S = bright_S + waves.harmonic(
        f_S * (1. + g.uniform(.003, .008)), bright_H, phases_H)
  if family == 'flute':  # Tremolo and breath noise around the tone.
    breath_S = waves.resonate(waves.noise(g, n), min(2. * f, 6000.), 1500.)
    bright_S = (bright_S * (1. + .3 * wobble_S)
                + breath_S * waves.decibels(g.uniform(-14., -6.)))
  if family == 'reed':  # Roughness.
    bright_S = bright_S * (1. + .25 * np.sin(2. * np.pi * g.uniform(18., 30.)
                                             * t_S))
  # Seconds; 9 is practically no decay within a clip.
  attack, decay = {
      'bowed': (.12, 9.), 'brass': (.05, 9.), 'clarinet': (.03, 9.),
      'flute': (.08, 9.), 'organ': (.008, 9.), 'plucked': (.002, .25),
      'reed': (.02, 9.), 'voice': (.06, 9.)}[family]
  attack = min(attack * waves.log_uniform(g, .7, 1.4), .4 * n / waves.RATE)
  decay = decay * waves.log_uniform(g, .7, 1.4)
  return bright_S * waves.attack_decay(n, attack, decay, .03)


def drum(g: np.random.Generator, kind: str, n: int) -> np.ndarray:
  """Returns one stroke of n samples, peaking near one; `kind` is of DRUMS."""
  t_S = waves.seconds(n)
  if kind in ('kick', 'tom'):  # A tone of falling pitch, with a click.
    low, high = {'kick': (45., 75.), 'tom': (90., 260.)}[kind]
    f = waves.log_uniform(g, low, high)
    sweep = f * g.uniform(1., 2.5) * .03
    # The integral of the frequency f + sweep / .03 exp(-t / .03).
    phase_S = f * t_S - sweep * np.expm1(-t_S / .03)
    wave_S = np.sin(2. * np.pi * phase_S)
    wave_S += .1 * waves.noise(g, n) * np.exp(-t_S / .004)
    return wave_S * waves.attack_decay(n, .002, waves.log_uniform(g, .06, .2))
  if kind == 'block':
    f = waves.log_uniform(g, 700., 2200.)
    f_P = (f, f * g.uniform(1.4, 2.6))
    return waves.modal(g, f_P, (1., .5), (.03, .015), n)
  hiss_S = waves.noise(g, n)
  if kind == 'hat':  # Differences keep only high frequencies.
    hiss_S = np.diff(hiss_S, 2, prepend=(0., 0.)) / 3.
    return hiss_S * waves.attack_decay(n, .001, waves.log_uniform(g, .015, .09))
  if kind == 'snare':  # The body of a drum and noise of its wires.
    f = waves.log_uniform(g, 160., 260.)
    body_S = waves.modal(g, (f, 1.7 * f), (1., .6), (.06, .04), n)
    decay = waves.log_uniform(g, .05, .14)
    return body_S + .5 * hiss_S * waves.attack_decay(n, .001, decay)
  # A clap: three short bursts, then a decay.
  gap = g.uniform(.009, .014)
  late_S = np.maximum(t_S - 3. * gap, 0.)
  burst_S = np.where(t_S < 3. * gap, np.exp(-(t_S % gap) / .003),
                     np.exp(-late_S / waves.log_uniform(g, .03, .09)))
  f = waves.log_uniform(g, 900., 1800.)
  return 2. * waves.resonate(hiss_S * burst_S, f, 900.)


def syllable(g: np.random.Generator, f_S: np.ndarray, vowel: int) -> np.ndarray:
  """Returns a syllable: glottal pulses through three formants.

  Args:
    g: source of random numbers, also for the length of the vocal tract.
    f_S: fundamental frequency over time, Hz.
    vowel: number in VOWELS.
  """
  n = len(f_S)
  # Enough to reach 8 kHz from a voice of 50 Hz.
  k_H = np.arange(1, 161)
  wave_S = waves.harmonic(f_S, k_H ** -.9, np.zeros(160))
  breath_S = waves.noise(g, n)
  wave_S = wave_S + .05 * breath_S
  tract = g.uniform(.9, 1.15)
  voiced_S = np.zeros(n)
  for formant, width, gain in zip(VOWELS[vowel], (70., 100., 150.),
                                  (1., .6, .35)):
    voiced_S = voiced_S + gain * waves.resonate(
        wave_S, tract * formant, width)
  voiced_S = waves.normalise(voiced_S) * waves.attack_decay(
      n, g.uniform(.015, .05), 9., g.uniform(.03, .07))
  if g.integers(2):  # A consonant at the beginning.
    length = min(int(g.integers(400, 1400)), n // 3)
    burst_S = waves.resonate(breath_S[:length],
                             waves.log_uniform(g, 1500., 6000.), 1800.)
    burst_S = waves.normalise(burst_S) * waves.attack_decay(length, .004, .04)
    voiced_S[:length] = (voiced_S[:length] * np.linspace(0., 1., length)
                         + g.uniform(.2, .8) * burst_S)
  return voiced_S


def _impulses(g, n, rate, spread):
  """Returns random clicks, `rate` per second on average.

  Amplitudes are log-normal with a standard deviation of `spread` dB.
  """
  wave_S = np.zeros(n)
  count = int(g.poisson(rate * n / waves.RATE))
  at_E = g.integers(n, size=count)
  # Not +=, as several clicks may fall on one sample.
  np.add.at(wave_S, at_E, waves.decibels(spread * g.standard_normal(count))
            * (2. * g.integers(2, size=count) - 1.))
  return wave_S


def texture(g: np.random.Generator, kind: str, n: int) -> np.ndarray:
  """Returns a stationary texture of RMS one; `kind` is of TEXTURES."""
  t_S = waves.seconds(n)
  if kind == 'hiss':
    wave_S = waves.noise(g, n)
  elif kind == 'rain':  # Many drops; crackle below has few.
    wave_S = _impulses(g, n, waves.log_uniform(g, 250., 600.), 7.)
    wave_S = waves.resonate(wave_S, waves.log_uniform(g, 1500., 5000.), 2500.)
  elif kind == 'crackle':
    clicks_S = _impulses(g, n, waves.log_uniform(g, 10., 30.), 4.)
    wave_S = waves.resonate(clicks_S, waves.log_uniform(g, 1000., 5000.), 900.)
    wave_S = wave_S + .003 * waves.noise(g, n)
  elif kind == 'wind':  # Noise with slowly changing colour and level.
    sway_S = waves.smooth(g, n, 6.)
    wave_S = waves.noise(g, n)
    dark_S = waves.resonate(wave_S, 250., 300.) * 4.
    wave_S = dark_S + (.5 + .5 * sway_S) * (.6 * wave_S - dark_S)
    wave_S = wave_S * waves.decibels(9. * waves.smooth(g, n, 5.))
  elif kind == 'flutter':  # Noise with a regular envelope, such as wings.
    rate = waves.log_uniform(g, 9., 20.)
    wave_S = waves.noise(g, n) * waves.decibels(
        14. * np.sin(2. * np.pi * (rate * t_S + g.uniform())))
  elif kind == 'engine':  # Low pulses of varying rate through two resonances.
    f_S = waves.log_uniform(g, 28., 60.) * 2. ** (.1 * waves.smooth(g, n, 3.))
    wave_S = waves.harmonic(f_S, np.ones(160), np.zeros(160))
    wave_S = (waves.resonate(wave_S, waves.log_uniform(g, 150., 400.), 200.)
              + waves.resonate(wave_S, waves.log_uniform(g, 600., 2500.), 700.)
              + .15 * waves.noise(g, n))
  elif kind == 'insects':  # A high tone, buzzing and chirping.
    rate = waves.log_uniform(g, 25., 60.)
    f = waves.log_uniform(g, 2500., 6000.)
    f_S = f * 2. ** (.05 * waves.smooth(g, n, 8.))
    buzz_S = .5 + .5 * np.sin(2. * np.pi * rate * t_S)
    chirp_S = np.sin(2. * np.pi * (g.uniform(3., 7.) * t_S + g.uniform()))
    wave_S = (np.sin(2. * np.pi * np.cumsum(f_S / waves.RATE)) * buzz_S
              * np.clip(3. * chirp_S + 1., 0., 1.) + .02 * waves.noise(g, n))
  else:  # Bubbles: short tones of rising pitch.
    wave_S = .01 * waves.noise(g, n)
    for at in g.integers(n, size=int(g.poisson(waves.log_uniform(g, 12., 30.)
                                               * n / waves.RATE))):
      length = min(int(g.integers(500, 1300)), n - int(at))
      drop_S = waves.seconds(length)
      f = waves.log_uniform(g, 500., 2500.)
      wave_S[at:at + length] += (
          np.sin(2. * np.pi * f * drop_S * (1. + 6. * drop_S))
          * np.exp(-drop_S / .02) * waves.decibels(g.uniform(-12., 0.)))
  return waves.normalise(wave_S)
