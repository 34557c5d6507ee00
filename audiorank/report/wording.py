"""Every sentence that a report, a notebook or the README says of a sweep.

The analysis returns numbers; what they mean in words is here and nowhere
else. `claims` is the table of claims, `opening` the three sentences that open
a report.
"""

from collections.abc import Iterable
import math
from typing import Any
from typing import NamedTuple

import pandas as pd

from audiorank import analysis
from audiorank import laws
from audiorank.analysis import advice as advice_of
from audiorank.analysis import claims as numbers_of
from audiorank.analysis import joint
from audiorank.analysis import law as law_of
from audiorank.analysis import optima
from audiorank.analysis import study
from audiorank.analysis.claims import Claim
from audiorank.analysis.claims import Needed
from audiorank.analysis.claims import Rival
from audiorank.laws import early as ranking
from audiorank.report.numbers import count
from audiorank.report.numbers import interval
from audiorank.report.numbers import p_value
from audiorank.report.numbers import percent
from audiorank.report.numbers import short
from audiorank.report.numbers import signed
from audiorank.report.numbers import tenth
from audiorank.report.numbers import two

# What each claim says, as if it held; the verdict follows.
TITLES = {
    'one_slope': 'A doubling of RankMe is worth the same whatever is varied',
    'within_width': 'At equal width, a higher RankMe goes with a higher score',
    'rivals': 'RankMe predicts the score better than other predictors do',
    'width_rivals': 'At equal width, RankMe predicts the score better than '
                    'other predictors do',
    'early': 'Early in training, RankMe orders the runs by their final score '
             'better than other predictors do',
    'scoring': 'The first two verdicts are the same with another score: {}',
    'slope': 'The score follows RankMe when only this varies: {}',
    'law': 'Rank and score lie on one saturating power law with a limit',
    'bound': 'Little data stops larger models from scoring higher',
    'gain': 'Training lifts the score above the untrained network\'s',
    'growth': 'RankMe grows in training',
    'floor': 'RankMe falls early to a floor that does not depend on size',
    'top_first': 'RankMe falls to its floor in the last layer first',
    'width_power': 'RankMe is a power of width: {} networks',
    'best_layer': 'The layer of highest RankMe is the best layer',
    'noise': 'Configurations differ by more than seeds do',
    'samples': 'It does not matter which clips RankMe is measured on',
    'objective': 'Encoders trained by another objective lie on the same line: '
                 '{}'}
# Fields of a table as people call them.
CALLED = {'hours_asked': 'hours of audio', 'mask_ratio': 'masking rate',
          'lr': 'learning rate', 'width': 'width', 'depth': 'depth',
          'heads': 'heads', 'crop_seconds': 'crop length',
          'batch': 'batch size', 'steps': 'training steps',
          'category': 'sounds trained on', 'decoder_heads': 'decoder heads'}
KNOBS = {'lr': 'learning rate', 'batch': 'batch', 'steps': 'steps'}
# What happened to a run: by its curve, and by the monitor while it trained.
EVENTS = {'collapse': 'RankMe collapsed', 'dip': 'RankMe fell by half and '
          'came back', 'spike': 'the loss spiked', 'diverged': 'diverged'}
ALARMS = {
    'small_sample': 'fewer than 4 clips per dimension, so RankMe is biased '
                    'low',
    'collapse': 'RankMe near 1',
    'collapse_centred': 'all embeddings the same vector',
    'sinking_centred_rank': 'centred RankMe fell three times in a row',
    'centred_RankMe_sinks': 'centred RankMe fell three times in a row',
    'valid_loss_not_finite': 'validation loss not finite',
    'valid_loss_rise': 'validation loss rose to 1.2 times its lowest value',
    'rank_jump': 'RankMe changed by more than a factor of 2 between '
                 'evaluations'}
NAMED = 6  # Runs that a sentence names; more are counted.
# What makes a run a troubled one; the other alarms are about the measurement.
WRONG = ('collapse', 'collapse_centred', 'dip', 'spike', 'diverged',
         'valid_loss_not_finite', 'valid_loss_rise', 'rank_jump',
         'instability')


class Row(NamedTuple):
  """A claim in words."""
  claim: str
  measured: str
  compared: str
  verdict: str
  needed: str


# --- The table of claims ---


def claims(several: tuple[Claim, ...]) -> list[Row]:
  """Returns every claim in words, in their order."""
  return [Row(title(one), measured(one), compared(one), one.verdict,
              needed(one)) for one in several]


def frame(several: tuple[Claim, ...]) -> pd.DataFrame:
  """Returns the claims as a table of texts."""
  return pd.DataFrame(claims(several), columns=[
      'claim', 'measured [95 %]', 'compared with', 'verdict',
      'needed to decide'])


def markdown(several: tuple[Claim, ...]) -> str:
  """Returns the claims as the lines of a Markdown table."""
  table = frame(several)
  line = lambda cells: '| ' + ' | '.join(str(c) for c in cells) + ' |'
  return '\n'.join([line(table.columns), '|' + '---|' * len(table.columns),
                    *(line(row) for row in table.itertuples(index=False))])


def plain(several: tuple[Claim, ...]) -> str:
  """Returns the claims as text for a terminal."""
  out = []
  for one in several:
    lines = [f'{one.verdict}: {title(one)}', f'  {measured(one)}']
    # A claim without a text has no line for it.
    lines += [f'  {text}' for text in (compared(one),) if text]
    lines += [f'  to decide: {text}' for text in (needed(one),) if text]
    out.append('\n'.join(lines))
  return '\n'.join(out)


def title(one: Claim) -> str:
  """Returns what a claim says."""
  # Only titles with braces are of a family of changes.
  return TITLES[one.key].format(called(one.family))


def called(name: str) -> str:
  """Returns what people call a field or a family."""
  # A field of the configuration keeps its own name: data.valid_fraction.
  if '.' in name:
    return name
  return CALLED.get(name, name.replace('_', ' '))


def size(one: Claim) -> str:
  """Returns on how much a claim rests."""
  text = count(one.configurations, 'configuration')
  # One configuration with several seeds is several trainings.
  if one.trainings != one.configurations:
    text = f'{count(one.trainings, "training")} of {text}'
  return text


def measured(one: Claim) -> str:
  """Returns what was measured for a claim."""
  return MEASURED[one.key](one)


def compared(one: Claim) -> str:
  """Returns what the measurement of a claim is compared with."""
  # Some claims have nothing that they are compared with.
  words = COMPARED.get(one.key)
  if words is None:
    return ''
  return words(one)


# --- What was measured, and compared: a function a kind of claim ---


def slope_text(one: Claim) -> str:
  """Returns a slope with its interval; no slope of a score exceeds 1."""
  return (f'{signed(one.estimate)} {interval(one.low, one.high, 1.)} '
          f'{one.unit}')


def _one_slope(one: Claim) -> str:
  # NaN: too few families for a test.
  if math.isnan(one.p):
    return (f'{count(len(one.details["names"]), "thing")} varied one at a '
            f'time; {size(one)}')
  known = one.details
  text = (f'slopes of {len(known["names"])} families of changes: common '
          f'slope {signed(known["common"])} {one.unit}, standard deviation '
          f'between families {short(one.estimate)} '
          f'[{short(one.low)}, {short(one.high)}]; Cochran\'s Q = '
          f'{known["q"]:.1f} on {known["free"]} degrees of freedom, '
          f'p {p_value(one.p)}')
  # Size usually decides the test, so the rest is judged without it too.
  without = known['without']
  if without:
    text += (f'; without size: Q = {without.q:.1f} on {without.free}, p '
             f'{p_value(without.p)}, common slope {signed(without.common)}')
  return text


def _within_width(one: Claim) -> str:
  if math.isnan(one.estimate):
    return size(one)
  return (f'{slope_text(one)}; {size(one)} at '
          f'{count(one.details["groups"], "width")}; permutation p '
          f'{p_value(one.details["permuted"])}')


def _slope(one: Claim) -> str:
  # Confounded: this field changes only together with others.
  if one.needed and one.needed.kind == 'alone':
    return (f'{one.details["values"]} values, but no two configurations that '
            'differ in nothing else')
  if math.isnan(one.p):
    return size(one)
  known = one.details
  text = f'{size(one)} in {count(known["groups"], "group")}'
  # RankMe moves no further than seeds move it. The corrected slope is then
  # unbounded, so the raw one is shown. spread and seeds are in doublings.
  if one.needed and one.needed.kind == 'moves':
    return (f'{text}; RankMe differs by {tenth(2 ** known["spread"] - 1)} '
            f'within groups and by {tenth(2 ** known["seeds"] - 1)} between '
            'seeds; slope without correction for that noise '
            f'{signed(known["raw"])} '
            f'{interval(known["raw_low"], known["raw_high"], 1.)}')
  if math.isnan(one.estimate):
    return text
  return (f'{slope_text(one)}; {text}; adjusted p '
          f'{p_value(known["adjusted"])}')


def _compared_slope(one: Claim) -> str:
  """What explains the score's variance within groups, RankMe first."""
  if 'explained' not in one.details:
    return ''
  each = ', '.join(f'{name} {percent(share)}' for name, share in
                   one.details['explained'].items() if math.isfinite(share))
  if not each:
    return ''
  return (f'share of the score\'s variance within groups explained by {each}; '
          f'permutation p {p_value(one.details["permuted"])}')


def _rivals(one: Claim) -> str:
  if math.isnan(one.estimate):
    return size(one)
  known = one.details
  text = (f'cross-validated error {short(one.estimate)} (of the mean score: '
          f'{short(known["mean"])}), Spearman correlation '
          f'{two(known["spearman"])}; {size(one)}')
  if math.isfinite(known['partial']):
    text += (f'; partial correlation given {listed(known["given"])} '
             f'{two(known["partial"])} '
             f'{ends(known["partial_low"], known["partial_high"])}')
  return text


def _early(one: Claim) -> str:
  if math.isnan(one.estimate):
    return size(one)
  known = one.details
  text = (f'at {percent(known["share"])} of training RankMe orders '
          f'{percent(known["pairs"])} of the pairs of runs correctly, '
          f'Kendall\'s tau {two(one.estimate)} {ends(one.low, one.high)}')
  if math.isfinite(known['within']):
    text += f'; tau among runs of one size {two(known["within"])}'
  if known['without']:
    text += (f'; left out: {count(known["without"], "run")} without an '
             'evaluation near these steps')
  return f'{text}; {size(one)}'


def _law(one: Claim) -> str:
  if 'sd' not in one.details:
    return (f'{one.trainings} of {count(one.details["trained"], "training")} '
            'score above their untrained network')
  known = one.details
  return (f'fitted to the {one.trainings} of {known["trained"]} trainings that '
          f'score above their untrained network: {limit(one)}, exponent '
          f'{exponent(known["b_low"], known["b_high"])}, residual standard '
          f'deviation {short(known["sd"])}; RankMe spans '
          f'{known["span"]:.2f} decades')


def limit(one: Claim) -> str:
  """Returns what a law says of its limit, never above what a score can be."""
  low, high, ceiling = one.low, one.high, one.details['ceiling']
  # A limit that no score can reach bounds nothing.
  below = math.isfinite(low) and low < ceiling
  if high <= ceiling and below:
    return f'limit between {short(low)} and {short(high)}'
  if below:
    return f'limit above {short(low)}, no upper bound'
  return 'limit not bounded'


def exponent(low: float, high: float) -> str:
  """Returns the interval of an exponent in words."""
  if high == math.inf:
    return f'above {short(low)}'
  return f'{short(low)} to {short(high)}'


def _bound(one: Claim) -> str:
  if math.isnan(one.estimate):
    return size(one)
  each = ', '.join(f'{hours:.2g} h {signed(slope)}' for hours, slope in
                   zip(one.details['hours'], one.details['slopes']))
  return (f'{one.unit}: {each}; difference between most and least data '
          f'{signed(one.estimate)} {interval(one.low, one.high, 1.)}; '
          f'{size(one)}')


def _gain(one: Claim) -> str:
  if math.isnan(one.estimate):
    return 'no untrained network'
  known = one.details
  return (f'{known["above"]} of {count(one.trainings, "training")} score '
          f'higher{beyond(known["beat"])}; mean difference '
          f'{signed(one.estimate)} {interval(one.low, one.high, 1.)} over '
          f'{count(known["baselines"], "untrained network")}')


def beyond(beat: int | None) -> str:
  """Returns how many of some trainings beat their untrained network."""
  if beat is None:
    return ''
  return (f', {beat} by the 95 % interval of the difference, paired over test '
          'clips')


def _growth(one: Claim) -> str:
  if math.isnan(one.estimate):
    return 'no untrained network'
  known = one.details
  # RankMe usually falls at first, so its way matters and not only its end.
  fell, rose, runs = known['valley']
  below = one.trainings - known['above']
  text = (f'RankMe ends below its untrained value in {below} of '
          f'{count(one.trainings, "training")}: '
          f'{span(known["untrained_low"], known["untrained_high"])} before '
          f'training, {span(known["rank_low"], known["rank_high"])} after; '
          f'mean change {change(one.estimate)}')
  if math.isfinite(one.low):
    text += f' [{change(one.low)}, {change(one.high)}]'
  if runs:
    text += (f'; it fell at first in {fell} of {runs} runs and then rose by '
             f'more than 5 % in {rose}')
  return text


def span(low: float, high: float) -> str:
  """Returns a range of RankMe."""
  if low == high:
    return f'{low:.1f}'
  return f'{low:.1f} to {high:.1f}'


def change(doublings: float) -> str:
  """Returns a change of RankMe in per cent."""
  return f'{100 * (2 ** doublings - 1):+.0f} %'.replace('-', '−')


def _noise(one: Claim) -> str:
  if math.isnan(one.estimate):
    return f'no configuration was trained with two seeds; {size(one)}'
  known = one.details
  return (f'standard deviation of the score between '
          f'{count(known["repeats"], "run")} that differ only in seed or order '
          f'of clips {short(one.estimate)} [{short(one.low)}, '
          f'{short(one.high)}] (of RankMe {percent(known["rank"])}), between '
          f'{one.configurations} configurations {short(known["between"])}; '
          f'p {p_value(one.p)}')


def _samples(one: Claim) -> str:
  if math.isnan(one.estimate):
    return size(one)
  each = ', '.join(f'{rival.name} {short(rival.value)} '
                   f'({two(one.details["order"][rival.name])})'
                   for rival in one.rivals)
  return (f'cross-validated error by sample (rank correlation with RankMe of '
          f'the whole corpus): whole corpus {short(one.estimate)}, {each}')


def _objective(one: Claim) -> str:
  known = one.details
  text = (f'{count(one.configurations, "configuration")} at '
          f'{count(known["sizes"], "size")}, RankMe '
          f'{span(known["rank_low"], known["rank_high"])}')
  if math.isnan(one.estimate):
    return text
  if math.isnan(one.low):
    return (f'distance from the line {signed(one.estimate)} of score; {text}: '
            'the noise of a single run is unknown')
  return (f'mean distance {signed(one.estimate)} '
          f'{interval(one.low, one.high, 1.)} of score from the line through '
          f'{known["line"]} configurations of the main objective at these '
          f'sizes; {text}, standard deviation between them '
          f'{short(known["spread"])}; p {p_value(one.p)}')


def _share(one: Claim) -> str:
  """A share of runs with its interval."""
  return f'{percent(one.estimate)} [{percent(one.low)}, {percent(one.high)}]'


def _best_layer(one: Claim) -> str:
  each = ', '.join(f'layer {k + 1} in {runs}' for k, runs in
                   enumerate(one.details['often']))
  return (f'so in {_share(one)} of the runs, {percent(one.details["chance"])} '
          f'by chance; best: {each}; {size(one)}')


def _compared_best_layer(one: Claim) -> str:
  cost = one.details['cost']
  mine, *others = cost
  each = ', '.join(f'{rival.name} ({percent(rival.value)})'
                   for rival in one.rivals)
  lost = ', '.join(f'{name} {short(cost[name])}' for name in others)
  return (f'best in as many runs: {each}; mean score lost against the best '
          f'layer: {mine} {short(cost[mine])}, {lost}; '
          f'{differing(one.rivals)}')


def _floor(one: Claim) -> str:
  known = one.details
  each = ', '.join(f'{name} {value:.1f}'
                   for name, value in known['floors'].items())
  text = (f'lowest in the first half of training, below the untrained value, '
          f'in {percent(known["early"])} [{percent(known["early_low"])}, '
          f'{percent(known["early_high"])}] of the runs, at a median of '
          f'{percent(known["share"])} of training and {change(known["fall"])}')
  if each:
    text += f'; median floor by size, all else equal: {each}'
  if math.isfinite(one.estimate):
    text += (f'; sizes differ by {beyond_seeds(one.estimate, one)} standard '
             f'deviations between seeds ({tenth(known["seeds"])}), F test p '
             f'{p_value(one.p)}')
  return f'{text}; {size(one)}'


def beyond_seeds(value: float, one: Claim) -> str:
  """Returns a distance in units of the noise of seeds, with its interval."""
  high = 'no upper bound'
  if math.isfinite(one.high):
    high = f'{one.high:.2f}'
  return f'{value:.2f} [{one.low:.2f}, {high}]'


def _top_first(one: Claim) -> str:
  tied = one.details['tied']
  if math.isnan(one.estimate):
    return (f'all layers are lowest at the same evaluation in '
            f'{count(tied, "run")}')
  text = (f'so in {_share(one)} of the runs, {percent(one.details["chance"])} '
          f'by chance; {size(one)}')
  if tied:
    text += f'; left out: {count(tied, "run")} in which no layer is first'
  return text


def _compared_top_first(one: Claim) -> str:
  if not one.rivals:
    return ''
  rival, = one.rivals
  return f'{rival.name} in {percent(rival.value)}; {differing(one.rivals)}'


def _width_power(one: Claim) -> str:
  if math.isnan(one.estimate):
    return size(one)
  known = one.details
  least, most = known['widths']
  text = (f'exponent {signed(one.estimate)} [{signed(one.low)}, '
          f'{signed(one.high)}] over widths {least} to {most}')
  if math.isfinite(known['lack']):
    ends_of = one._replace(low=known['lack_low'], high=known['lack_high'])
    text += (f'; configurations lie off the power by '
             f'{beyond_seeds(known["lack"], ends_of)} standard deviations '
             'between seeds')
  return f'{text}; {size(one)} in {count(known["groups"], "group")}'


def _compared_width_power(one: Claim) -> str:
  if not one.rivals:
    return ''
  rival, = one.rivals
  per_cent = lambda doublings: tenth(2 ** doublings - 1)
  return (f'cross-validated error of RankMe {per_cent(one.details["left_out"])}'
          f', of {rival.name} {per_cent(rival.value)}; '
          f'{differing(one.rivals, "the power law")}')


def _scoring(one: Claim) -> str:
  one_slope, at_width = one.details['again']
  return (f'one slope for all {one_slope.verdict} ({_one_slope(one_slope)}); '
          f'at equal width {at_width.verdict} ({_within_width(at_width)}); '
          'rank correlation of the two scores '
          f'{two(one.details["spearman"])}')


def _compared_scoring(one: Claim) -> str:
  one_slope, at_width = one.details['before']
  return (f'by the main score: one slope for all {one_slope}, at equal width '
          f'{at_width}')


MEASURED = {'one_slope': _one_slope, 'within_width': _within_width,
            'slope': _slope, 'rivals': _rivals, 'width_rivals': _rivals,
            'early': _early, 'law': _law, 'scoring': _scoring,
            'bound': _bound, 'gain': _gain, 'growth': _growth,
            'floor': _floor, 'top_first': _top_first,
            'width_power': _width_power, 'best_layer': _best_layer,
            'noise': _noise, 'samples': _samples, 'objective': _objective}


def sentence(text: str) -> str:
  """Returns a text with a capital letter."""
  # Not str.capitalize, which would turn RankMe into rankme.
  return text[:1].upper() + text[1:]


def listed(names: Iterable[str], last: str = 'and') -> str:
  """Returns 'a, b and c'."""
  names = list(names)
  if len(names) < 2:
    return ''.join(names)
  return f'{", ".join(names[:-1])} {last} {names[-1]}'


def _compared_width(one: Claim) -> str:
  if not one.rivals:
    return ''
  # The only rival of a slope at equal width is the slope across widths.
  rival, = one.rivals
  return (f'slope across sizes {signed(rival.value)} (permutation p '
          f'{p_value(one.details["across_permuted"])}); difference '
          f'{signed(rival.difference)} '
          f'{interval(rival.low, rival.high, 1.)}'
          + '; certainly less than half of it' * one.details.get('less', False))


def _compared_rivals(one: Claim) -> str:
  """Cross-validated errors, width first, and which differ significantly."""
  each = ', '.join(f'{rival.name} {short(rival.value)}'
                   for rival in one.rivals)
  if not each:
    return ''
  return f'cross-validated errors: {each}; {differing(one.rivals)}'


def ends(low: float, high: float) -> str:
  """Returns '[low, high]' with two decimals."""
  if not (math.isfinite(low) and math.isfinite(high)):
    return '[no interval]'
  return f'[{two(low)}, {two(high)}]'


def differing(rivals: tuple[Rival, ...], own: str = 'RankMe') -> str:
  """Returns which rivals differ significantly from RankMe, or another."""
  # decided is negative where the rival is significantly better.
  better = [rival.name for rival in rivals if rival.decided < 0]
  worse = [rival.name for rival in rivals if rival.decided > 0]
  return (f'significantly better than {own}: {listed(better) or "none"}; '
          f'significantly worse: {listed(worse) or "none"}')


def _compared_early(one: Claim) -> str:
  if not one.rivals:
    return ''
  share = one.details['rival_pairs']
  each = ', '.join(f'{rival.name} ({percent(share[rival.name])})'
                   for rival in one.rivals)
  first = one.rivals[0]
  return (f'pairs ordered correctly by {each}; tau of RankMe minus tau of '
          f'{first.name} {two(first.difference)} '
          f'{ends(first.low, first.high)}; {differing(one.rivals)}')


def _compared_law(one: Claim) -> str:
  if 'sd' not in one.details:
    return ''
  known = one.details
  sure = 'not significantly lower'
  # By the lower end of the interval of the gain over the mean score.
  if known['better_low'] > 0:
    sure = 'significantly lower'
  return (f'cross-validated error {short(known["left_out"])}, of the mean '
          f'score {short(known["mean"])} ({sure})')


def _compared_samples(one: Claim) -> str:
  if not one.rivals:
    return ''
  ratio = lambda gap: f'{100 * gap / one.estimate:+.0f} %'.replace('-', '−')
  each = ', '.join(f'{rival.name} [{ratio(rival.low)}, '
                   f'{ratio(rival.high)}]' for rival in one.rivals
                   # The sum is finite only if both ends are.
                   if math.isfinite(rival.low + rival.high))
  return each and f'change of the error from the whole corpus: {each}'


def _compared_objective(one: Claim) -> str:
  if 'best' not in one.details:
    return ''
  return ('its best score minus the best of the main objective '
          f'{signed(one.details["best"])}')


COMPARED = {'within_width': _compared_width, 'slope': _compared_slope,
            'rivals': _compared_rivals, 'width_rivals': _compared_rivals,
            'early': _compared_early, 'scoring': _compared_scoring,
            'top_first': _compared_top_first,
            'width_power': _compared_width_power,
            'best_layer': _compared_best_layer,
            'law': _compared_law, 'samples': _compared_samples,
            'objective': _compared_objective}
# What would decide a claim, by Needed.kind; the fields are Needed's.
NEEDED = {
    'runs': '{amount:.0f} times as many runs, if the estimate is right',
    'range': 'changes that move RankMe further; more runs alone would not be '
             'enough',
    'moves': 'changes that move RankMe by more than seeds do',
    'alone': 'runs in which nothing else changes: so far it changes only '
             'together with {names}',
    'seeds': 'the same configuration with several seeds',
    'families': 'two things varied, one at a time',
    'slopes': 'more runs in every family, until the slopes certainly vary by '
              'less than half their mean',
    'width': 'two configurations of one width',
    'configurations': 'about {amount:.0f} configurations',
    'baselines': 'the scores of the untrained networks',
    'more_baselines': 'more sizes or seeds, each with its untrained network',
    'above': '{amount:.0f} more runs that score above their untrained network',
    'decades': 'RankMe over at least {amount:g} decades of runs that score '
               'above their untrained network',
    'wider': 'a wider range than these {amount:.1f} decades of RankMe',
    'fit': 'a fit: {names}',
    'order': '{amount:.0f} scored runs',
    'evaluations': 'an evaluation of RankMe early in training, at the same '
                   'step of every run',
    'scores': 'scores that differ',
    'grid': 'three sizes or more at two amounts of data or more',
    'line': '{amount:.0f} configurations of the main objective at these sizes',
    'vary': 'runs that differ in {names} alone, at two values '
            'or more',
    'vary_alone': 'runs that differ in {names} alone: it changes together '
                  'with another axis',
    'scaling_runs': '{amount:.0f} scored configurations or more that differ in '
                    'size, hours or steps alone',
    'columns': 'records of this version: the table lacks {names}',
    'valley': 'at one budget of FLOPs, at least {amount:.0f} sizes, each '
              'trained for as many steps as the budget buys '
              '(configs/compute_optimal.py)',
    'joint': 'three sizes or more, each at two values or more of {names}, '
             'eight configurations in all',
    'bounded': 'two sizes or more at which the best value has an interval '
               'within the values tried: more seeds there, or more values',
    'other_sizes': 'sizes further apart: the change is close to the limit',
    'budget': 'a budget of at least {amount:.3g} FLOPs',
    'between': 'another question: so more often than by chance, and in fewer '
               'than half of the runs',
    'often': 'evaluations closer to each other early in training',
    'widths': '{amount:.0f} widths or more, all else equal',
    'more_sizes': 'more sizes, each with several seeds',
    'both': 'what decides the inconclusive ones among these verdicts',
    'repeats': 'several seeds at each size: one run per size does not separate '
               'noise from differences between sizes'}


def needed(one: Claim) -> str:
  """Returns what would decide a claim, '' where it is decided."""
  if one.needed is None:
    return ''
  return needed_text(one.needed)


def needed_text(what: Needed) -> str:
  """Returns what is needed, in words."""
  return NEEDED[what.kind].format(amount=what.amount,
                                  names=listed(map(called, what.names)))


# --- The opening of the page ---


def opening(result: analysis.Analysis) -> list[str]:
  """Returns what holds, what does not, what to do and what to scale next."""
  if not result.claims:
    return ['No trained run is scored yet, so nothing can be said.',
            'No claim is refuted either.',
            'Next: run the same command again; it trains and scores what is '
            'missing.']
  holding = phrases(result, numbers_of.HOLDS)
  failing = phrases(result, numbers_of.FAILS)
  left = sum(one.verdict == numbers_of.INCONCLUSIVE for one in result.claims)
  holds = 'These runs confirm none of the claims below.'
  if holding:
    holds = f'What holds: {"; ".join(holding)}.'
  tested = count(len(result.claims), 'claim')
  fails = f'What does not hold: of the {tested} tested, none is refuted'
  if failing:
    fails = f'What does not hold: that {"; that ".join(failing)}'
  if left:
    which = f'{left} of the {tested} tested'
    if not failing:
      which = f'{left} of them'
    if left == len(result.claims):
      which = 'all'
    verb = 'are'
    if left == 1:
      verb = 'is'
    fails += (f'; {which} {verb} inconclusive: these runs do not decide them '
              'either way')
  return [holds, f'{fails}.', f'What to do next: {next_step(result)}.',
          f'What to scale next: {advice_words(result.scaling)}.']


def phrases(result: analysis.Analysis, verdict: str,
            most: int = 3) -> list[str]:
  """Returns the decided claims in a few words each, the main ones first."""
  # Claims without a phrase appear in the table of claims alone.
  words = SHORT[verdict]
  mine = [one for one in result.claims
          if one.verdict == verdict and one.key in words]
  out = []
  # All families in one phrase, where the first of them stands.
  slopes = [one for one in mine if one.key == 'slope']
  for one in mine:
    if one.key == 'slope':
      if one is slopes[0]:
        names = [called(each.family) for each in slopes]
        out.append(words['slope'].format(listed(names, 'or'))
                   + outdone(slopes))
      continue
    text = words[one.key]
    out.append(text(one) if callable(text) else text)
  return out[:most]


def outdone(several: list[Claim]) -> str:
  """Returns, in brackets, where a slope holds but something else explains
  more of the score than RankMe does; '' where nothing does."""
  out = []
  for one in several:
    shares = {name: share for name, share in
              one.details.get('explained', {}).items() if math.isfinite(share)}
    own = shares.pop(law_of.SUBJECT, math.nan)
    best = max(shares, key=lambda name: shares[name], default='')
    if one.verdict != numbers_of.HOLDS or not best or not shares[best] > own:
      continue
    where = ''
    if len(several) > 1:
      where = f' where {called(one.family)} varies'
    out.append(f'{best} explains more of it than RankMe does{where}, '
               f'{percent(shares[best])} against {percent(own)}')
  return f' ({"; ".join(out)})' * bool(out)


def _width_better(one: Claim) -> str:
  # The claim fails only if some rival is better, so there is a first.
  best = [rival for rival in one.rivals if rival.decided < 0][0]
  pairs = one.details['rival_pairs'][best.name]
  return (f'RankMe at {percent(one.details["share"])} of training orders the '
          f'runs by their final score better than {best.name} does '
          f'({percent(one.details["pairs"])} of pairs ordered correctly '
          f'against {percent(pairs)})')


def _unequal(one: Claim) -> str:
  text = 'a doubling of RankMe is worth the same score whatever is varied'
  size_slope, without = one.details['size'], one.details['without']
  if without is None or math.isnan(size_slope):
    return f'{text} (p {p_value(one.p)})'
  return (f'{text} ({signed(size_slope)} where size varies, '
          f'{signed(without.common)} where anything else does, p '
          f'{p_value(one.p)})')


def _size_first(one: Claim) -> str:
  # Follows 'What does not hold: that', so it names those that do better.
  return ('RankMe predicts the score better than '
          + listed([rival.name for rival in one.rivals if rival.decided < 0]))


def _better_at_width(one: Claim) -> str:
  return f'at equal width {_size_first(one)}'


# A phrase is a text, or a function of the claim.
SHORT: dict[str, dict[str, Any]] = {
    numbers_of.HOLDS: {
        'one_slope': lambda one: f'a doubling of RankMe is worth '
                                 f'{signed(one.details["common"])} of score '
                                 'whatever is varied',
        'within_width': lambda one: f'at equal width the score rises by '
                                    f'{slope_text(one)}',
        'rivals': 'RankMe predicts the score better than width, size and all '
                  'other predictors',
        'early': lambda one: f'at {percent(one.details["share"])} of training '
                             'RankMe orders the runs better than width, size '
                             'and loss do',
        'slope': 'the score follows RankMe when only {} varies',
        'law': lambda one: f'the score saturates, {limit(one)}',
        'gain': lambda one: f'training lifts the score by '
                            f'{signed(one.estimate)} '
                            f'{interval(one.low, one.high, 1.)}, in '
                            f'{one.details["above"]} of {one.trainings} '
                            'trainings',
        'growth': lambda one: f'RankMe grows in training by '
                              f'{change(one.estimate)}',
        'width_rivals': 'at equal width RankMe predicts the score better than '
                        'all that is cheaper to know',
        'best_layer': lambda one: 'the layer of highest RankMe is the best one '
                                  f'in {_share(one)} of the runs',
        'bound': 'little data stops larger models from scoring higher'},
    # The claims as they stand: 'What does not hold: that' precedes them.
    numbers_of.FAILS: {
        'one_slope': _unequal,
        'within_width': lambda one: f'at equal width a higher RankMe goes '
                                    f'with a higher score ({slope_text(one)})',
        'rivals': _size_first, 'width_rivals': _better_at_width,
        'best_layer': lambda one: 'the layer of highest RankMe is the best '
                                  f'layer (so in {_share(one)} of the runs)',
        'floor': 'RankMe falls early to a floor that does not depend on size',

        'early': _width_better,
        'slope': 'the score follows RankMe when only {} varies (it falls)',
        'growth': lambda one: f'RankMe grows in training (it ends below its '
                              f'untrained value in '
                              f'{one.trainings - one.details["above"]} of '
                              f'{one.trainings} trainings)',
        'gain': 'training lifts the score above the untrained network\'s',
        'objective': lambda one: f'{called(one.family)} encoders lie on the '
                                 'same line',
        'bound': 'little data stops larger models from scoring higher'}}


def next_step(result: analysis.Analysis) -> str:
  """Returns what to do next, the most pressing thing first."""
  by_key = {one.key: one for one in result.claims}
  # What is missing comes before what could be better.
  if by_key['gain'].needed and by_key['gain'].needed.kind == 'baselines':
    return ('score the untrained networks (the same sweep command does it): '
            'without them nothing shows that training helps')
  if math.isnan(by_key['noise'].estimate):
    return ('train one configuration with at least five seeds: without seeds '
            'the noise of a difference is unknown')
  # A bootstrap over fewer configurations decides nothing.
  few = result.study.counts.configurations
  if few < law_of.FEWEST:
    return (f'train more configurations: {few} are too few to rank '
            f'predictors; {ranking.ENOUGH} runs are a fair start')
  early, width = by_key['early'], by_key['within_width']
  worse = [rival.name for rival in early.rivals if rival.decided < 0]
  # If RankMe fails where it was to help, say what to use instead.
  refused = numbers_of.FAILS in (by_key['one_slope'].verdict, early.verdict)
  if refused and width.verdict != numbers_of.HOLDS:
    instead = next(iter(worse), 'their scores')
    text = (f'compare runs by {instead}, not by RankMe, and do not use RankMe '
            'to choose among runs of equal width')
    if width.needed:
      text += f'; to decide whether it predicts anything there: {needed(width)}'
    return text
  # RankMe is advised only where it does better than its rivals.
  if numbers_of.HOLDS in (by_key['rivals'].verdict, early.verdict):
    return 'choose runs by RankMe and scale what raises it'
  undecided = [one for one in (by_key['one_slope'], width, by_key['rivals'])
               if one.needed]
  if undecided:
    return f'to decide the first claims: {needed(undecided[0])}'
  return 'repeat the sweep on a wider range of sizes and data'


# --- Sentences of the sections ---


def rows_used(result: analysis.Analysis) -> list[str]:
  """Returns which rows the claims rest on."""
  n = result.study.counts
  rows = result.study.trained
  trained, above, beat = len(rows), 0, None
  if trained:
    above, beat = int((rows['gain'] > 0).sum()), study.beating(rows)
  out = [f'{count(n.rows, "trained run")}: {n.scored} scored on every task, '
         f'{count(n.trainings, "different training")} of '
         f'{count(n.configurations, "configuration")}. Rows with the same '
         'configuration and seeds are one training. '
         f'{count(n.untrained, "untrained network")}, {n.baselines} '
         'different.']
  if n.halved:
    out.append(f'{count(n.halved, "run")} stopped early, by predicted score, '
               'and not scored: no claim rests on them, so the runs compared '
               'are those that looked best early, and the pilots.')
  if len(result.study.others):
    out.append(f'{count(trained, "training")} share the main objective; the '
               f'{len(result.study.others)} of other objectives are only '
               'compared with its line.')
  out.append('The law is fitted to the trainings that score higher than their '
             f'own untrained network: {above} of {trained}{beyond(beat)}. '
             'Everything else uses all of them.')
  # Below that the interval of an order holds both luck and skill.
  if trained < ranking.ENOUGH:
    out.append(f'Exploratory: with fewer than {ranking.ENOUGH} trainings an '
               'order of runs may be luck. Read the intervals, not the '
               'values.')
  return out


def method() -> list[str]:
  """Returns how the claims are decided."""
  return [
      'A slope is the score per doubling of RankMe among configurations that '
      'differ only in what is named, each group with its own intercept. '
      'It is corrected for the noise of RankMe between seeds and for the '
      'correlation of that noise with the score\'s; an interval is unbounded '
      'where RankMe moves no more than seeds move it.',
      'One slope for all is tested by Cochran\'s Q, with the covariances of '
      'slopes that share configurations. The noise is estimated from seeds '
      'and from the residuals of configurations about their lines.',
      'Families of changes are judged together at 5 %, by Holm\'s method; a '
      'family in which RankMe moves further gets a larger share of that level. '
      'Shapes of one size are significant only if size is. The two claims '
      'about training share 5 %; every other claim has its own 5 %.',
      'RankMe counts as better than other predictors only if the paired '
      'interval against each of them says so. It counts as worse if one of '
      'them is better at 5 % over all of them.',
      'An interval that contains 0 does not show a difference, nor that there '
      'is none.']


def law_words(result: analysis.Analysis) -> list[str]:
  """Returns what the law says, or why there is none."""
  one = next((c for c in result.claims if c.key == 'law'), None)
  if one is None:
    return []
  if result.fit is None:
    assert result.lacks is not None  # law.fit returns a law or what it lacks.
    return [f'No law is fitted. Needed: {needed_text(result.lacks)}.']
  out = [f'Q = Q_inf − a R^−b: {measured(one)}. {sentence(compared(one))}.']
  # A score ends at its ceiling, so a limit above it shows no saturation.
  if result.study.bounded and one.high > one.details['ceiling']:
    out.append('These runs do not show where the score saturates.')
  if one.details['span'] < law_of.NARROW:
    out.append(f'RankMe spans {one.details["span"]:.2f} decades; Q_inf is '
               f'rarely identified below {law_of.NARROW}.')
  # As b tends to 0 with a b constant, the law tends to a line in log R.
  if not math.isfinite(one.details['b_high']) or one.details['b_low'] <= 1e-3:
    out.append('The exponent is not identified either: a straight line in '
               'log RankMe describes these runs as well.')
  return out


def layer_words(several: tuple[laws.Fit, laws.Fit, float] | None) -> list[str]:
  """Returns the laws of the final layer's score and of the best layer's.

  Args:
    several: of analysis.law.of_layers.
  """
  if several is None:
    return []
  *fits, gain = several
  out = [f'The best layer scores {gain:+.3f} above the final one, in the mean.']
  for name, fit in zip(("final layer's", "best layer's"), fits):
    low, high = fit.ci('Q_inf')
    b_low, b_high = fit.ci('b')
    out.append(
        f'Law of the {name} score: limit {fit.params["Q_inf"]:.3f} '
        f'({low:.3g} to {high:.3g}), exponent {fit.params["b"]:.2f} '
        f'({b_low:.3g} to {b_high:.3g}), standard deviation of the runs '
        f'{fit.sd:.3f}.')
  return out


def form_words(table: pd.DataFrame) -> list[str]:
  """Returns which form of law has the lowest cross-validated error."""
  if not len(table):
    return []
  # loo: the leave-one-out error, which some forms may lack.
  known = table.dropna(subset=['loo'])
  if len(known) < 2:
    return []
  name = lambda row: f'{row["law"].replace("_", "-")} law'
  best, second = known.iloc[0], known.iloc[1]
  # Akaike's criterion, corrected for small samples (Hurvich and Tsai, 1989).
  chosen = known.loc[known['aicc'].idxmin()]
  text = (f'Of the {len(known)} forms compared, the {name(best)} has the '
          f'lowest cross-validated error ({best["loo"]:.3g}; next: the '
          f'{name(second)}, {second["loo"]:.3g})')
  if chosen['law'] != best['law']:
    text += (f', while AICc prefers the {name(chosen)}: these runs do not '
             'settle the form')
  return [f'{text}.']


def width_words(trained: pd.DataFrame) -> list[str]:
  """Returns the rank correlations within widths."""
  if not len(trained) or trained['width'].nunique() < 2:
    return []
  part = []
  for width, rows in trained.groupby('width'):
    # A correlation of few runs, or of equal values, says nothing.
    if len(rows) >= law_of.FEWEST and rows['rank'].nunique() > 1 and (
        rows['score'].nunique() > 1):
      # By ranks, as the relation need not be a line.
      inside = ranking.spearman(rows['rank'], rows['score'])
      part.append(f'{two(inside)} at width {width} ({len(rows)} trainings)')
  if not part:
    return []
  return ['RankMe cannot exceed the width, so across widths it is confounded '
          f'with size; within one width its rank correlation with the score '
          f'is {", ".join(part)}.']


def early_words(result: analysis.Analysis) -> list[str]:
  """Returns whether early RankMe chooses the run."""
  one = next((c for c in result.claims if c.key == 'early'), None)
  lacks = result.early.lacks
  if one is None or lacks:
    assert lacks is not None  # Without claims there are too few runs as well.
    return [f'Not judged. Needed: {needed_text(lacks)}.']
  out = [f'{sentence(measured(one))} (chance: 50 % of pairs).',
         f'{sentence(compared(one))}.']
  saved = result.early.halving.set_index('chooser')
  mine = saved.loc[law_of.SUBJECT]
  out.append(
      'Successive halving by RankMe at '
      f'{count(len(result.early.rungs), "rung")} saves '
      f'{percent(mine["saved"])} of the compute; the best run that is left '
      f'scores {mine["regret"]:.3f} less than the best of all. As many runs '
      f'chosen at random lose {mine["random"]:.3f} on average; chosen by '
      f'other predictors they lose: {choosers(saved)}.')
  noise = next(c for c in result.claims if c.key == 'noise')
  if math.isfinite(noise.estimate):
    # The difference of two independent runs has sqrt(2) times the standard
    # deviation of one; 1.96 of these are 95 %.
    out.append('The scores of two seeds may differ by '
               f'{short(1.96 * math.sqrt(2) * noise.estimate)}: smaller '
               'differences are not significant.')
  return out


def choosers(saved: pd.DataFrame) -> str:
  """Returns the regrets of the other choosers."""
  return listed(f'{name} {row["regret"]:.3f}' for name, row in saved.iterrows()
                if name != law_of.SUBJECT)


def trouble_words(result: analysis.Analysis) -> list[str]:
  """Returns what does not follow the law and which runs went wrong."""
  wrong, out = result.diagnostics, []
  if wrong.signs is not None:  # Where there is a law.
    out += outlier_words(wrong.outliers) + family_words(wrong.families)
    runs, expected, p = wrong.signs
    if math.isfinite(p):
      end = 'no systematic deviation from the law'
      if p < .05:
        end = 'the runs deviate systematically from the law'
      out.append(f'Ordered by RankMe the residuals change sign {runs - 1} '
                 f'times, {expected - 1:.0f} expected (p {p_value(p)}): '
                 f'{end}.')
    if len(wrong.bends):
      prefers = 'is not'
      if wrong.bends.attrs['broken']:
        prefers = 'is'
      out.append(f'A broken power law of 1 − score {prefers} preferred to a '
                 'straight one.')
  return out + event_words(wrong.events)


def outlier_words(table: pd.DataFrame) -> list[str]:
  """Returns the runs that the law does not explain."""
  if not len(table):
    return ['No run is an outlier of the law (studentised residuals, 5 % over '
            'all runs).']
  each = ', '.join(str(label) for label in table['label'])
  return [f'Outliers of the law: {each}.']


def family_words(table: pd.DataFrame) -> list[str]:
  """Returns the sizes that stand apart from the law."""
  if len(table) < 2:
    return []
  apart = table[table['p'] < .05]
  if not len(apart):
    return []
  each = ', '.join(f'{row.family} ({signed(row.mean)})'
                   for row in apart.itertuples())
  return [f'Sizes that deviate from the law as a whole: {each}. So one law of '
          'RankMe alone does not hold across sizes.']


def event_words(events: pd.DataFrame) -> list[str]:
  """Returns which runs went wrong, by curve or by the monitor's alarms."""
  out = []
  if not events['kind'].isin(WRONG).any():
    out.append('No run collapsed, dipped, spiked or diverged, by its curve or '
               'by the monitor.')
  for kind, rows in events.groupby('kind', sort=False):
    # An alarm may repeat at every evaluation: count a run once.
    rows = rows.drop_duplicates('run_id')
    what = EVENTS.get(kind) or ALARMS.get(kind) or kind.replace('_', ' ')
    which = f'{len(rows)} runs'
    if len(rows) <= NAMED:
      which = ', '.join(f'{row.name_} at step {row.step:g}' for row in
                        rows.rename(columns={'name': 'name_'}).itertuples())
    out.append(f'{sentence(what)}: {which}.')
  return out


def conventions(record: dict | None, result: analysis.Analysis) -> list[str]:
  """Returns how rank and score were measured.

  Args:
    record: a monitor record of the sweep, or None.
    result: the analysis.
  """
  out = []
  if record:
    out.append(
        f'RankMe: {record["n"]} clips of {record["sources"]} recordings, '
        f'uncentred singular values of the time mean of the '
        f'{record["layer"]} layer, eps {record["rank"]["eps"]:g} added '
        'outside the fraction; intervals by jackknife over blocks of '
        'recordings.')
  tasks = result.study.tasks
  protocols = []
  if 'protocol' in tasks:
    protocols = sorted(tasks['protocol'].dropna().unique())
  out.append('Score: unweighted mean over the scene tasks of each task\'s '
             'first metric on its test split; predictor: '
             f'{", ".join(protocols) or "none yet"}. Event tasks are listed '
             'but not averaged.')
  out.append('Compute counts encoder and decoder, forward and backward.')
  return out + method()


def checklist(result: analysis.Analysis) -> dict[str, str]:
  """Returns the answers of laws.checklist that only the sweep knows."""
  trained, tasks = result.study.trained, result.study.tasks

  def tried(name, text):
    values = sorted(trained[name].unique())
    return f'{text} ' + ', '.join(f'{v:g}' for v in values)

  # Negated, so that a run whose gain is NaN counts as behind too.
  behind = int((~(trained['gain'] > 0)).sum())
  metrics = []
  if len(tasks):
    metrics = sorted(tasks['metric'].unique())
  names = [name for name in KNOBS if name in trained]
  knobs = ', '.join(tried(name, KNOBS[name]) for name in names)
  # If sizes were tuned over other values, size is confounded with tuning.
  same = all(trained.groupby('size')[name].agg(frozenset).nunique() == 1
             for name in names)
  also = 'not the same for all sizes'
  if same:
    also = 'the same for every size'
  left_out = 'none'
  if behind:
    left_out = (f'{behind} of {len(trained)} trainings, which do not score '
                'above their untrained network')
  return {
      'alternatives compared': ', '.join(result.forms['law']),
      'hyperparameters per size': f'{knobs}; {also}',
      'learning rate schedule': 'in config.json of each run',
      'seeds per configuration': str(trained['seed'].nunique()),
      'metric': 'mean over tasks'
                + f' of {", ".join(metrics)}' * bool(metrics),
      'checkpoints used': 'the last of each run',
      'how size is counted': 'encoder parameters; no size enters this law',
      'how compute is counted': 'encoder and decoder, forward and backward; '
                                'no compute enters this law',
      'points left out': left_out}


# --- What to scale next ---

# Axis: what grows, its unit.
GROWTH = {'size': ('the compute by a larger model', 'parameters'),
          'hours': ('the hours of audio, at the same compute', 'h'),
          'steps': ('the compute by longer training', 'steps')}


def amount(axis: str, value: float) -> str:
  """Returns an amount of an axis with its unit."""
  if axis == 'hours':
    return f'{value:.3g} {GROWTH[axis][1]}'
  return f'{value:,.0f} {GROWTH[axis][1]}'


def gain_words(result: analysis.Advice) -> list[str]:
  """Returns a sentence an axis: what a doubling is expected to add."""
  out = []
  for one in result.gains:
    growth, _ = GROWTH[one.axis]
    if one.needed is not None:
      out.append(f'Doubling {growth}: nothing is known. Needed: '
                 f'{needed_text(one.needed)}.')
      continue
    text = (f'Doubling {growth} ({amount(one.axis, one.start)} to '
            f'{amount(one.axis, one.end)}): expected score '
            f'{signed(one.value)} {interval(one.low, one.high, 1.)}')
    # Up to 1 % above the largest run is rounding, no extrapolation.
    if one.beyond > 1.01:
      text += f', {one.beyond:.2g} times beyond the largest tried'
    out.append(f'{text}.')
  return out


def best_words(result: analysis.Advice) -> list[str]:
  """Returns the best run of a budget, and where the optimum lies."""
  known, top = result.scaling, result.best
  if known is None or top is None:
    return []
  first, one = known.start, top.point
  cost = cost_text(result, one.flops)
  out = [f'The best configuration so far by the law: {run_text(first)}.',
         f'The best run of at most {result.budget:.3g} FLOPs '
         f'({short(result.budget / first.flops)} times as much): '
         f'{run_text(one)}' + f'; {cost}' * bool(cost) + '.']
  ends = {'size': top.params, 'hours': top.hours, 'steps': top.steps}
  parts = [f'{amount(axis, low)} to {amount(axis, high)}'
           for axis, (low, high) in ends.items() if axis in known.axes]
  out.append(f'With 95 % probability the optimum of that budget lies within '
             f'{listed(parts)}.')
  if top.edges:
    out.append(f'In {listed(top.edges)} the best is the largest allowed: by '
               'the budget, by the audio that there is, or by '
               f'{analysis.REACH:.0f} times the largest tried.')
  return out


def run_text(one: analysis.Point) -> str:
  """Returns a run with its expected score and price."""
  return (f'{amount("size", one.params)}, {amount("hours", one.hours)}, '
          f'{amount("steps", one.steps)}, {one.flops:.3g} FLOPs, expected '
          f'score {short(one.score)} [{short(one.low)}, {short(one.high)}]')


def cost_text(result: analysis.Advice, flops: float) -> str:
  """Returns hours and price of some FLOPs, '' where no rate was measured."""
  hours = advice_of.hours(result, flops)
  if result.rate is None or math.isnan(hours):
    return ''
  time = f'{hours:.2g} h'
  # Nobody reads .02 h.
  if hours < 1:
    time = f'{max(1, round(60 * hours))} min'
  where = ''
  if result.rate.chips > 1:
    where = f' on {result.rate.chips} chips'
  text = f'about {time} of training{where} at the rate of these runs'
  if result.price:
    text += f', {hours * result.rate.chips * result.price:.2f} by --price'
  return text


def point_words(goal: str, several: dict[str, analysis.Point],
                widths: dict[str, tuple[float, float]],
                result: analysis.Advice | None = None) -> list[str]:
  """Returns the runs proposed and what they do to the intervals.

  Args:
    goal: what they were chosen for.
    several: {name: run}.
    widths: {axis: (width of the gain's interval now, expected afterwards)}.
    result: the advice, for hours and price; None for neither.
  """
  total = sum(one.flops for one in several.values())
  cost = ''
  if result is not None:
    cost = cost_text(result, total)
  out = [f'{count(len(several), "run")} {goal}, {total:.3g} FLOPs'
         + f' ({cost})' * bool(cost) + ':']
  out += [f'  {name}: {run_text(one)}' for name, one in several.items()]
  for axis, (now, after) in widths.items():
    out.append(f'The interval of the gain of {axis} is {short(now)} wide and '
               f'is expected to be {short(after)} wide afterwards.')
  return out


def decide_words(plan: analysis.Plan) -> list[str]:
  """Returns what further seeds of a family's configurations would do."""
  out = [f'{count(plan.seeds, "seed")} more of each of '
         f'{count(len(plan.runs) // plan.seeds, "configuration")}, '
         f'{plan.flops:.3g} FLOPs, to decide the slope of {plan.family}.']
  now, after = (f'{short(v)} wide' if math.isfinite(v) else 'unbounded'
                for v in (plan.now, plan.after))
  if math.isnan(plan.after):
    return [*out, 'No configuration has two seeds yet, so that the width '
            'afterwards is not known.']
  return [*out, f'The interval of the slope is {now} and is expected to be '
          f'{after} afterwards.']


def advice_words(result: analysis.Advice) -> str:
  """Returns what to scale next, or why nothing is known."""
  known = [one for one in result.gains if one.needed is None]
  if result.scaling is None or result.best is None or not known:
    lacks = result.lacks or Needed('scaling_runs', 4)
    return ('these runs say nothing about size, hours or steps; needed: '
            f'{needed_text(lacks)}')
  # By the expected gain; its significance is stated beside it.
  top = max(known, key=lambda one: one.value)
  # By the interval that the sentence shows.
  sure = 'not significantly different from 0'
  if top.low > 0:
    sure = 'significantly above 0'
  if top.high < 0:
    sure = 'significantly below 0'
  one = result.best.point
  cost = cost_text(result, one.flops)
  return (f'of what was varied, doubling {GROWTH[top.axis][0]} promises most: '
          f'{signed(top.value)} of score {interval(top.low, top.high, 1.)}, '
          f'{sure}; the best run of {result.budget:.3g} FLOPs, twice those of '
          'the best so far' + f' ({cost})' * bool(cost)
          + f', would have {amount("size", one.params)}, '
          f'{amount("hours", one.hours)} and {amount("steps", one.steps)}, '
          f'expected score {short(one.score)} [{short(one.low)}, '
          f'{short(one.high)}]')


# --- Forecasts ---

SCALES = {'smooth': 'scales smoothly', 'no trend': 'does not change from the '
          'smallest run to the largest beyond noise',
          'breaks': 'does not scale smoothly: its largest runs lie outside '
          'the intervals predicted from the others',
          'unknown': 'too few runs to say whether it scales smoothly'}


def forecast_words(tree: dict[str, Any]) -> list[str]:
  """Returns the predictions of a forecast, a line each."""
  out = [f'Run {tree["run_id"]}, {tree["times_the_compute"]:.3g} times the '
         'compute of the largest run so far; 95 % intervals of one run:']
  out += [f'  {one["quantity"]}: {short(one["value"])} [{short(one["low"])}, '
          f'{short(one["high"])}], {SCALES[one["scaling"]]}'
          for one in tree['predictions']]
  return out


def forecast_verdict(table: pd.DataFrame) -> list[str]:
  """Returns how many predictions came true.

  Args:
    table: of analysis.forecast.compared.
  """
  runs = table['run_id'].nunique()
  # Runs that are not finished have no observed value yet.
  scored = table.dropna(subset=['observed'])
  out = [f'{count(runs, "forecast")} of {len(table)} quantities'
         f'; {len(scored)} can be compared with their run so far, and '
         f'{int(scored["inside"].sum())} of these lie within their 95 % '
         'interval.']
  # A forecast that was edited afterwards is no forecast.
  edited = table[~table['intact']]['run_id'].unique()
  if len(edited):
    out.append(f'Changed after it was written: {listed(edited)}.')
  # What does not scale smoothly is named: its forecast is worth less.
  breaks = table[table['scaling'].isin(['breaks', 'no trend'])]
  for name, rows in breaks.groupby('quantity'):
    out.append(f'{sentence(str(name))} {SCALES[rows["scaling"].iloc[0]]}.')
  return out


# --- Size and data together ---

PARTS = {'valleys': 'The best size at equal compute', 'hours': 'The size that '
         'the audio can feed', 'steps': 'Longer or larger'}


def joint_words(known: joint.Joint) -> list[str]:
  """Returns what size and data show together, and what is missing."""
  out = []
  if known.valleys is not None:
    out += [valley_text(row) for _, row in known.valleys.iterrows()]
  if known.rank_valleys is not None:
    out += [valley_text(row, 'RankMe is largest')
            for _, row in known.rank_valleys.iterrows()]
  if known.bound is not None:
    out.append(bound_text(known))
  if known.choice is not None:
    out.append(choice_text(known.choice))
  out += [f'{PARTS[part]}: not known. Needed: {needed_text(need)}.'
          for part, need in known.lacks.items()]
  return out


def valley_text(row: pd.Series,
                what: str = 'the validation loss is least') -> str:
  """Returns the best size at one budget, by the loss or by RankMe."""
  text = (f'At {row["flops"]:.3g} FLOPs, {row["points"]:.0f} runs: {what} at ')
  # A minimum at an end of the range is only a bound of the minimum.
  if not row['inside']:
    return (f'{text}the smallest or the largest size: the best lies outside '
            'the sizes tried.')
  if math.isnan(row['size_low']):
    return (f'{text}{row["size"]:,.0f} parameters; its interval reaches beyond '
            'the sizes tried.')
  return (f'{text}{row["size"]:,.0f} parameters [{row["size_low"]:,.0f}, '
          f'{row["size_high"]:,.0f}].')


def bound_text(known: joint.Joint) -> str:
  """Returns the size beyond which more parameters stop helping."""
  bound, law = known.bound, known.hours
  assert bound is not None and law is not None
  # Of the most audio that was tried; less audio binds earlier.
  hours = max(law.data['hours_asked'])
  if bound.refused:
    return (f'No size is shown beyond which {hours:.3g} h of audio stop larger '
            f'models: {bound.refused}.')
  return (f'{hours:.3g} h of audio stop helping larger models at '
          f'{bound.size:,.0f} parameters [{bound.low:,.0f}, '
          f'{bound.high:,.0f}], by the validation loss.')


def choice_text(table: pd.DataFrame) -> str:
  """Returns what twice the compute of the largest run is best used for."""
  rows = table.set_index('choice')
  parts = [f'{name} {short(row["value"])} [{short(row["value_low"])}, '
           f'{short(row["value_high"])}]' for name, row in rows.iterrows()]
  return (f'Twice the compute of the largest run, expected validation loss: '
          f'{", ".join(parts)}; longer beats larger in '
          f'{percent(table.attrs["longer_wins"])} of the resamples.')


# --- The best value of a setting ---

ENDS = {'first': ('below', 'smallest'), 'last': ('above', 'largest')}


def optima_table(known: optima.Optima) -> pd.DataFrame:
  """Returns the best value of a setting for all others, as texts."""
  name = called(known.field)
  return pd.DataFrame([{
      **{called(other): str(row[other]) for other in known.others},
      'size': str(row.get('size', '')), f'best {name}': best_text(row),
      '95 %': optimum_interval(row),
      'tried': f'{row["first"]:.3g} to {row["last"]:.3g}',
      'runs': str(row['runs']), 'remark': optimum_remark(row)}
      for _, row in known.table.iterrows()])


def best_text(row: pd.Series) -> str:
  """Returns an optimum, or beyond which of the tried values it lies."""
  if row['edge'] and not row['first'] < row['best'] < row['last']:
    return f'{ENDS[row["edge"]][0]} {row[row["edge"]]:.3g}'
  if math.isnan(row['best']):
    return '–'
  return f'{row["best"]:.3g}'


def optimum_interval(row: pd.Series) -> str:
  """Returns the interval of an optimum."""
  low, high = f'{row["low"]:.3g}', f'{row["high"]:.3g}'
  if not row['low'] and math.isinf(row['high']):
    return '[unbounded]'
  if not row['low']:
    low = 'unbounded below'
  if math.isinf(row['high']):
    high = 'unbounded above'
  return f'[{low}, {high}]'


def optimum_remark(row: pd.Series) -> str:
  """Returns why an optimum is not known, or not certain; or ''."""
  if row['lacks']:
    return row['lacks']
  if row['edge']:
    side, end = ENDS[row['edge']]
    return (f'the {end} value tried is the best: the optimum may lie {side} '
            'it')
  if math.isnan(row['best']):
    return 'the values tried do not bend towards a best one'
  if not row['low'] or math.isinf(row['high']):
    return 'too few runs, or too noisy: the interval is unbounded'
  return ''


def optima_words(known: optima.Optima) -> list[str]:
  """Returns whether the best value is the same at all sizes."""
  return [constant_text(known, one) for one in known.constant]


def constant_text(known: optima.Optima, one: Claim) -> str:
  """Returns a claim that the best value does not depend on the size."""
  where = f'With {one.family}, the' * bool(one.family) or 'The'
  text = (f'{where} best {called(known.field)} by {called(known.measure)} is '
          f'the same at all sizes within a factor of {optima.SAME:g}: '
          f'{one.verdict}')
  if math.isfinite(one.estimate):
    text += (f'. From {one.details["smallest"]} to {one.details["largest"]} it '
             f'changes {one.estimate:.2f} times [{one.low:.2f}, '
             f'{one.high:.2f}], {one.runs} runs at {one.details["sizes"]} '
             'sizes')
  if one.needed is not None:
    text += f'. Needed to decide: {needed_text(one.needed)}'
  return f'{text}.'
