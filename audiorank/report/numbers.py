"""Numbers as text, for every page and command. What is missing is never 0."""

import math

DASH = '–'
LARGE = 1e4  # Beyond it a figure of a report is a fault, not a number.
FAR = 99.  # Standard deviations beyond which more digits say nothing.


def number(value: float | None, form: str = '{:.3f}',
           missing: str = DASH) -> str:
  """Returns a number by a format, a dash or another text if it is missing."""
  if value is None or not math.isfinite(value):
    return missing
  return form.format(value)


def short(value: float) -> str:
  """Returns three digits: .012, 1.25, 84.3."""
  if not math.isfinite(value):
    return DASH
  if abs(value) >= LARGE:
    return f'{value:.2g}'
  if abs(value) >= 1:
    return f'{value:.3g}'
  # Numbers below 1 are written without their 0.
  return f'{value:.3f}'.replace('0.', '.', 1)


def signed(value: float) -> str:
  """Returns three decimals with a sign: +.012, −.108."""
  if not math.isfinite(value):
    return DASH
  if abs(value) < 10:
    return with_sign(value, f'{abs(value):.3f}')
  return with_sign(value, f'{abs(value):.3g}')


def with_sign(value: float, text: str) -> str:
  """Returns the text of a size with a sign, + for what rounds to 0.

  Args:
    value: the number.
    text: its absolute value.
  """
  sign = '+'
  # What rounds to 0 would otherwise be -0.
  if value < 0 and float(text):
    sign = '−'
  if text.startswith('0.'):
    text = text.removeprefix('0')
  return sign + text


def two(value: float) -> str:
  """Returns two decimals with a sign: +.37, −1.20."""
  if not math.isfinite(value):
    return DASH
  return with_sign(value, f'{abs(value):.2f}')


def tenth(value: float) -> str:
  """Returns a fraction as per cent with one decimal."""
  return number(100 * value, '{:.1f} %')


def interval(low: float, high: float, most: float = math.inf) -> str:
  """Returns '[low, high]' with signs; ends that nothing bounds are said so.

  Args:
    low: its lower end.
    high: its upper end.
    most: an end farther from 0 cannot be, and counts as unbounded.
  """
  if math.isnan(low) or math.isnan(high):
    return '[no interval]'
  # -inf < -inf is false, so infinity is a case of its own.
  below, above = low < -most or low == -math.inf, (
      high > most or high == math.inf)
  if below and above:
    return '[unbounded]'
  if below:
    return f'[unbounded below, {signed(high)}]'
  if above:
    return f'[{signed(low)}, unbounded above]'
  return f'[{signed(low)}, {signed(high)}]'


def between(low: float, high: float, form: str = '{:+.2f}') -> str:
  """Returns '[low, high]' by a format, a dash where there is none."""
  if low is None or high is None or not (
      math.isfinite(low) and math.isfinite(high)):
    return DASH
  return f'[{form.format(low)}, {form.format(high)}]'


def percent(value: float) -> str:
  """Returns a fraction as whole per cent."""
  return number(100 * value, '{:.0f} %')


def p_value(p: float) -> str:
  """Returns a p value with its sign; what rounds to nothing is not nothing."""
  if not math.isfinite(p):
    return DASH
  # A p of 0 to three digits is not 0.
  if p < .001:
    return '< .001'
  if p < .1:
    return f'= {p:.3f}'.replace('0.', '.')
  return f'= {p:.2f}'.replace('0.', '.', 1)


def deviations(value: float) -> str:
  """Returns a studentised residual: '+2.3', beyond FAR '> +99'."""
  if not math.isfinite(value):
    return DASH
  if abs(value) > FAR:
    return f"{'<' if value < 0 else '>'} {math.copysign(FAR, value):+.0f}"
  return f'{value:+.1f}'


def count(n: int, noun: str) -> str:
  """Returns '1 run', '3 runs'."""
  if n == 1:
    return f'{n} {noun}'
  return f'{n} {noun}s'
