"""The rank part of a JSON record: RankMe, its interval and what goes with it.

Whoever writes a record of embeddings calls `rank_fields` (embeddings in
memory) or `spectrum_fields` (moments that streamed by): training, evaluation
and embedding files alike.

Shapes: N clips, D width, K singular values.
"""

from typing import Any
import warnings

import jax
import numpy as np
from numpy import typing as npt

from audiorank.rankme import geometry
from audiorank.rankme import interval
from audiorank.rankme import neighbours
from audiorank.rankme import spectrum
from audiorank.rankme import streaming
from audiorank.rankme import summaries

Fields = dict[str, Any]  # What json.dumps takes.


def rank_fields(z_ND: npt.NDArray[Any] | jax.Array, source_N: npt.ArrayLike,
                layer: int | str = 'final', neighbour_clips: int = 0
                ) -> Fields:
  """Returns the rank part of a record, with every convention it follows.

  Args:
    z_ND: embeddings, float32 or float64.
    source_N: id of the recording that each clip was cut from.
    layer: which layer the embeddings come from; copied into the record.
    neighbour_clips: clips whose distances are measured, at most; 0 for none.

  Returns:
    n, width, layer, sources (number of recordings); 'rank' and 'rank_center'
    as in `spectrum_fields`; 'directions', the measures that a spectrum cannot
    show (`rankme.directions`), unless some embedding is zero; 'neighbourhood'
    if asked for (`neighbourhood`).

  Raises:
    ValueError: as `rankme.estimate`.
  """
  N, D = z_ND.shape
  sources = len(np.unique(source_N))
  fields = {'n': N, 'width': D, 'layer': layer, 'sources': sources}
  groups = recordings(source_N)
  with warnings.catch_warnings():
    # A small sample is an alarm in the record itself: warn only once.
    warnings.simplefilter('ignore', spectrum.SmallSample)
    fields.update(spectrum_fields(interval.state_of(z_ND, groups)))
  # Directions are divided by the norm of each embedding.
  if np.linalg.norm(z_ND, axis=1).all():
    fields['directions'] = geometry.directions(z_ND)
  if neighbour_clips:
    fields['neighbourhood'] = neighbourhood(z_ND, neighbour_clips)
  return fields


def neighbourhood(z_ND: npt.NDArray[Any] | jax.Array,
                  limit: int = neighbours.LIMIT) -> Fields:
  """Returns rankme.neighbourhood as JSON, None for NaN and infinity.

  Empty where there are too few clips.
  """
  if len(z_ND) < neighbours.LEAST or limit < neighbours.LEAST:
    return {}
  values = neighbours.measures(z_ND, limit)
  out: Fields = {**values}
  for name, value in values.items():
    if not np.isfinite(value):
      out[name] = None
  return out


def recordings(source_N: npt.ArrayLike) -> npt.ArrayLike | None:
  """Returns the groups of an interval: recordings, if there are several.

  The interval leaves out whole recordings. If there is only one, it leaves out
  consecutive clips instead.
  """
  if len(np.unique(source_N)) > 1:
    return source_N
  return None


def token_fields(token_ND: npt.NDArray[Any], source_N: npt.ArrayLike) -> Fields:
  """Returns value, low and high of RankMe of single tokens, one of each clip.

  The sample is as large as that of the pooled embeddings, so that the two
  values can be compared.

  Args:
    token_ND: one token of every clip.
    source_N: id of the recording that each clip was cut from.
  """
  # RankMe of zeros is undefined.
  if not np.any(token_ND):
    return {'value': None, 'low': None, 'high': None}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', spectrum.SmallSample)
    estimate = interval.estimate(
        interval.state_of(token_ND, recordings(source_N)))
  return {'value': estimate.value, 'low': estimate.low, 'high': estimate.high}


def spectrum_fields(state: streaming.State) -> Fields:
  """Returns 'rank' and 'rank_center': raw and centred RankMe of a state.

  Each is a `rankme.Estimate` as a dictionary with the spectral summaries
  ('siblings'), the `curve` over sample sizes and the `spectrum` as `shares`
  returns it. Where all embeddings are one vector the centred spectrum is
  zero: its 'value' is then None.
  """
  n, width = int(state.n_B.sum()), state.sum_BD.shape[1]
  fields = {}
  for name, center in (('rank', False), ('rank_center', True)):
    # One state serves both spectra: embeddings are passed over once.
    s_K = spectrum.singular_values(state, center=center)
    if s_K.sum() > 0:
      fields[name] = {
          **interval.estimate(state, center=center)._asdict(),
          'siblings': summaries.metrics(s_K, n),
          'curve': interval.curve(state, center),
          'spectrum': shares(s_K)}
    else:
      fields[name] = {
          **dict.fromkeys(interval.Estimate._fields), 'n': n, 'width': width,
          'center': center, 'siblings': {}, 'curve': [], 'spectrum': []}
  return fields


def shares(s_K: npt.NDArray[np.float64],
           most: int = 64) -> list[list[int | float]]:
  """Returns [[k, share of the sum of singular values]], k counted from 1.

  At most `most` values of k, at equal ratios: enough to draw the spectrum.
  """
  # Equal ratios, since spectra are looked at on logarithmic axes; rounding
  # repeats the first ones.
  k = np.unique(np.rint(np.geomspace(1, len(s_K), most)).astype(int))
  share_K = s_K / s_K.sum()
  return [[int(i), float(share_K[i - 1])] for i in k]
