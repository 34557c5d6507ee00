"""The measures of HEAR, equal to those of hear-eval-kit.

(The kit computes them with sklearn 1.9 and sed_eval 0.2.1.)

Scene measures take p_NC, predicted probabilities, and y_NC, zeros and ones.
Event measures take two dictionaries {file: events}, where an event is a
dictionary of label, start and end in milliseconds. Infinity and NaN are as in
the kit: d' is infinite if the AUC is 1; AUC and d' are undefined if a class has
no positives or no negatives; F is undefined without predicted events.

`scene_resampled` and `event_resampled` compute the same measures of resampled
test sets, from how often each resample draws every clip.

Shapes: N clips, C classes, B resamples, F files, R reference events,
E estimated events, P positives, M negatives, U different ranks, T seconds.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from scipy import sparse
from scipy import special

Event = Mapping[str, Any]
# File -> its events.
Events = Mapping[str, Sequence[Event]]

# sed_eval adds this to the count by which it divides an error rate.
TINY = float(np.spacing(1.0))
# Tolerance of an onset (ms), and of an offset as a share of the event.
ONSET_MS = {'event_onset_200ms_fms': (200.0, None),
            'event_onset_50ms_fms': (50.0, None),
            'event_onset_offset_50ms_20perc_fms': (50.0, 0.2)}
ERROR_RATE = 'segment_1s_er'


# --- Scenes ---


def top1_acc(p_NC: np.ndarray, y_NC: np.ndarray) -> float:
  """Returns the share of rows whose largest prediction is their class."""
  return float(np.mean(hits(p_NC, y_NC)))


def chroma_acc(p_NC: np.ndarray, y_NC: np.ndarray) -> float:
  """Returns the accuracy of the class index modulo 12, ignoring octaves."""
  return float(np.mean(hits(p_NC, y_NC, 12)))


def hits(p_NC: np.ndarray, y_NC: np.ndarray,
         octave: int | None = None) -> np.ndarray:
  """Returns hit_N: whether the largest prediction is the labelled class.

  Args:
    p_NC, y_NC: predictions and labels.
    octave: classes that differ by a multiple of it count as the same.
  """
  # Modulo the number of classes changes nothing.
  octave = octave or p_NC.shape[1]
  return p_NC.argmax(1) % octave == y_NC.argmax(1) % octave


def average_precision(p_NC: np.ndarray, y_NC: np.ndarray) -> np.ndarray:
  """Returns ap_C, the area under each class's precision-recall steps.

  A class without positives gets 0, as in sklearn.
  """
  # The sum over thresholds of precision times the step in recall equals the
  # mean over positives of the precision at their own score, ties included.
  ap_C = np.zeros(p_NC.shape[1])
  for c in range(len(ap_C)):
    p_N, on_N = p_NC[:, c], y_NC[:, c] > 0
    if on_N.any():
      all_N, own_P = np.sort(p_N), np.sort(p_N[on_N])
      retrieved_P = len(all_N) - np.searchsorted(all_N, own_P, 'left')
      relevant_P = len(own_P) - np.searchsorted(own_P, own_P, 'left')
      ap_C[c] = np.mean(relevant_P / retrieved_P)
  return ap_C


def auc(p_NC: np.ndarray, y_NC: np.ndarray) -> np.ndarray:
  """Returns auc_C, the area under each class's ROC curve.

  NaN for a class without positives or without negatives.
  """
  # Mann-Whitney: the share of pairs in which the positive ranks higher, with
  # ties counted half.
  auc_C = np.full(p_NC.shape[1], np.nan)
  for c, (p_N, on_N) in enumerate(zip(p_NC.T, y_NC.T > 0)):
    pairs = on_N.sum() * (~on_N).sum()
    if pairs and not np.isnan(p_N).any():
      off_N = np.sort(p_N[~on_N])
      below, upto = (np.searchsorted(off_N, p_N[on_N], side).sum()
                     for side in ('left', 'right'))
      auc_C[c] = (below + upto) / (2 * pairs)
  return auc_C


def mean_ap(p_NC: np.ndarray, y_NC: np.ndarray) -> float:
  """Returns the macro mean of `average_precision`."""
  return float(np.mean(average_precision(p_NC, y_NC)))


def aucroc(p_NC: np.ndarray, y_NC: np.ndarray) -> float:
  """Returns the macro mean of `auc`, NaN if any class is undefined."""
  return float(np.mean(auc(p_NC, y_NC)))


def d_prime(p_NC: np.ndarray, y_NC: np.ndarray) -> float:
  """Returns the macro mean of d' = sqrt(2) Phi^-1(AUC), inf if AUC is 1."""
  return float(np.mean(d_of_auc(auc(p_NC, y_NC))))


def d_of_auc(area: np.ndarray) -> np.ndarray:
  """Returns sqrt(2) Phi^-1(AUC)."""
  with np.errstate(invalid='ignore'):
    return math.sqrt(2) * special.ndtri(area)


SCENE = {'top1_acc': top1_acc, 'pitch_acc': top1_acc, 'chroma_acc': chroma_acc,
         'mAP': mean_ap, 'aucroc': aucroc, 'd_prime': d_prime}


def scene(names: Iterable[str], p_NC: np.ndarray,
          y_NC: np.ndarray) -> dict[str, float]:
  """Returns {name: value} of the named scene measures."""
  return {name: SCENE[name](p_NC, y_NC) for name in names}


def scene_resampled(name: str, p_NC: np.ndarray, y_NC: np.ndarray,
                    count_BN: np.ndarray) -> np.ndarray:
  """Returns q_B: a scene measure of every resample of the clips.

  A class without positives in a resample (or without negatives, for AUC and
  d') is left out of the mean of this resample. A class without positives in the
  clips themselves counts as in the measure.

  Args:
    name: of the measure.
    p_NC, y_NC: predictions and labels.
    count_BN: how often each resample draws each clip.
  """
  if name in ('mAP', 'aucroc', 'd_prime'):
    # A clip's counts beside each other: clips are sorted for every class.
    count_NB = np.ascontiguousarray(count_BN.T, np.int32)
    q_BC = np.stack([
        _ranked(name, p_NC[:, c], y_NC[:, c] > 0, count_NB)
        for c in range(p_NC.shape[1])], axis=1)
    return mean_of_defined(q_BC, axis=1)
  octave = None
  if name == 'chroma_acc':
    octave = 12
  # A resample is a vector of counts, so all of them are one product.
  right_B = count_BN @ hits(p_NC, y_NC, octave)
  # A resample of groups may draw none of a fold's clips; it is undefined.
  with np.errstate(invalid='ignore'):
    return right_B / count_BN.sum(1)


def _ranked(name: str, p_N: np.ndarray, on_N: np.ndarray,
            count_NB: np.ndarray) -> np.ndarray:
  """Returns AP, AUC or d' of one class, for every resample."""
  resamples = count_NB.shape[1]
  if not on_N.any():
    if name == 'mAP':
      return np.zeros(resamples)
    return np.full(resamples, np.nan)
  order_N = np.argsort(p_N, kind='stable')
  p_N, on_N = p_N[order_N], on_N[order_N]
  # Each positive counts as often as it was drawn. All three measures depend on
  # the ranks of positives only.
  p_P, own_PB = p_N[on_N], count_NB[order_N[on_N]]
  total_B = own_PB.sum(0)
  with np.errstate(invalid='ignore', divide='ignore'):
    if name == 'mAP':
      # Equal predictions have the same rank, that of the first.
      relevant_PB = _from(own_PB, np.searchsorted(p_P, p_P, 'left'))
      retrieved_PB = _from(count_NB[order_N], np.searchsorted(p_N, p_P, 'left'))
      precision_PB = np.where(own_PB > 0, relevant_PB / retrieved_PB, 0)
      return (own_PB * precision_PB).sum(0) / total_B
    # Row k is the sum of the first k negatives.
    p_M, off_MB = p_N[~on_N], count_NB[order_N[~on_N]]
    below_MB = np.cumsum(np.pad(off_MB, ((1, 0), (0, 0))), axis=0)
    # Mann-Whitney again: ties count half.
    beaten_B = sum((own_PB * below_MB[np.searchsorted(p_M, p_P, side)]).sum(0)
                   for side in ('left', 'right')) / 2
    area_B = beaten_B / (total_B * below_MB[-1])
  if name == 'aucroc':
    return area_B
  return d_of_auc(area_B)


def _from(count_NB: np.ndarray, first_P: np.ndarray) -> np.ndarray:
  """Returns the sums of the rows from first_P on, one row for each."""
  first_U, which_P = np.unique(first_P, return_inverse=True)
  # Sums of the rows between, then of these from the end.
  part_UB = np.add.reduceat(count_NB, first_U, axis=0)
  return np.cumsum(part_UB[::-1], axis=0)[::-1][which_P]


# --- Events ---


def event_onset_fms(predicted: Events, reference: Events, collar_ms: float,
                    length_share: float | None = None) -> dict[str, float]:
  """Returns f_measure, precision, recall over all events of all files.

  An estimated event may be matched to a reference event of the same file and
  label. The largest matching counts (sed_eval's 'optimal'). Precision is NaN
  without estimated events, recall without reference events, F without either.

  Args:
    predicted: events of all files that are scored.
    reference: true events.
    collar_ms: largest difference of the starts, ms.
    length_share: if not None, the ends may differ by at most
      max(collar_ms, length_share x reference length).
  """
  count_F3 = onset_counts(predicted, reference, collar_ms, length_share)
  correct, estimated, referred = count_F3.sum(0).tolist()
  precision = recall = math.nan
  if estimated:
    precision = correct / estimated
  if referred:
    recall = correct / referred
  if precision == 0 and recall == 0:
    f_measure = 0.0
  else:
    f_measure = 2 * precision * recall / (precision + recall)
  return {'f_measure': f_measure, 'precision': precision, 'recall': recall}


def onset_counts(predicted: Events, reference: Events, collar_ms: float,
                 length_share: float | None = None) -> np.ndarray:
  """Returns count_F3 of each file: matched, estimated, reference events."""
  counts = []
  for file, events in predicted.items():
    # Labels are matched one by one: an event never matches another label.
    truth = reference.get(file, ())
    matched = sum(
        _matches([e for e in truth if e['label'] == label],
                 [e for e in events if e['label'] == label],
                 collar_ms, length_share)
        for label in {event['label'] for event in events})
    counts.append((matched, len(events), len(truth)))
  return np.array(counts, np.int64).reshape(-1, 3)


def _matches(truth: Sequence[Event], events: Sequence[Event],
             collar_ms: float, length_share: float | None) -> int:
  """Returns the number of pairs in the best matching of one file and label."""
  # In seconds like sed_eval: a difference of exactly the collar must be on the
  # same side after the same rounding.
  times = lambda own, key: np.array([e[key] for e in own]) / 1000.0
  gap_RE = np.abs(np.subtract.outer(times(truth, 'start'),
                                    times(events, 'start')))
  near_RE = gap_RE <= collar_ms / 1000.0
  if length_share is not None and len(truth):
    length_R1 = (times(truth, 'end') - times(truth, 'start'))[:, None]
    gap_RE = np.abs(np.subtract.outer(times(truth, 'end'),
                                      times(events, 'end')))
    near_RE &= gap_RE <= np.maximum(collar_ms / 1000.0,
                                    length_share * length_R1)
  if not near_RE.any():
    return 0
  # Hopcroft and Karp's algorithm.
  match_R = sparse.csgraph.maximum_bipartite_matching(
      sparse.csr_array(near_RE), perm_type='column')
  return int(np.sum(match_R >= 0))


def segment_1s_er(predicted: Events, reference: Events,
                  labels: Sequence[str]) -> float:
  """Returns the error rate over 1 s segments.

  It is (substitutions + deletions + insertions) / active reference segments.
  An event marks every second that it touches. The segments of a file end with
  its last event, predicted or true.
  """
  errors, active = segment_counts(predicted, reference, labels).sum(0).tolist()
  return errors / (active + TINY)


def segment_counts(predicted: Events, reference: Events,
                   labels: Sequence[str]) -> np.ndarray:
  """Returns count_F2 of each file: errors, active reference segments."""
  column = {label: c for c, label in enumerate(labels)}
  counts = []
  for file, events in predicted.items():
    truth = reference.get(file, ())
    ends = [e['end'] / 1000.0 for e in (*truth, *events)]
    seconds = math.ceil(max(ends, default=0.0))
    truth_TC = _roll(truth, column, seconds)
    guess_TC = _roll(events, column, seconds)
    truth_T, guess_T = truth_TC.sum(1), guess_TC.sum(1)
    hit_T = (truth_TC & guess_TC).sum(1)
    # Substitutions are min(truth, guess) - hits; |truth - guess| is deleted or
    # inserted. The sum is max(truth, guess) - hits.
    errors = np.sum(np.maximum(truth_T, guess_T) - hit_T)
    counts.append((errors, truth_T.sum()))
  return np.array(counts, np.int64).reshape(-1, 2)


def _roll(events: Sequence[Event], column: Mapping[str, int],
          seconds: int) -> np.ndarray:
  """Returns roll_TC: which labels are active in which second."""
  roll_TC = np.zeros((seconds, len(column)), bool)
  for event in events:
    start = math.floor(event['start'] / 1000.0)
    roll_TC[start:math.ceil(event['end'] / 1000.0), column[event['label']]] = 1
  return roll_TC


EVENT = (*ONSET_MS, ERROR_RATE)


def event(names: Iterable[str], predicted: Events, reference: Events,
          labels: Sequence[str]) -> dict[str, float]:
  """Returns {name: value} of the named event measures.

  An F measure has two more entries, <name>_precision and <name>_recall.
  """
  out = {}
  for name in names:
    if name == ERROR_RATE:
      out[name] = segment_1s_er(predicted, reference, labels)
    else:
      values = event_onset_fms(predicted, reference, *ONSET_MS[name])
      out[name] = values['f_measure']
      out[f'{name}_precision'] = values['precision']
      out[f'{name}_recall'] = values['recall']
  return out


def event_resampled(name: str, predicted: Events, reference: Events,
                    labels: Sequence[str], count_BF: np.ndarray) -> np.ndarray:
  """Returns q_B: an event measure of every resample of the files.

  Args:
    name: of the measure.
    predicted, reference: events of the files.
    labels: of the task.
    count_BF: how often each resample draws each file of `predicted`.
  """
  with np.errstate(invalid='ignore', divide='ignore'):
    if name == ERROR_RATE:
      count_F2 = segment_counts(predicted, reference, labels)
      errors_B, active_B = (count_BF @ count_F2).T
      return errors_B / (active_B + TINY)
    count_F3 = onset_counts(predicted, reference, *ONSET_MS[name])
    # F is a ratio of sums over files, so resampled counts are enough: no event
    # is matched again.
    correct_B, estimated_B, referred_B = (count_BF @ count_F3).T
    # F is undefined without estimated or without reference events.
    defined_B = (estimated_B > 0) & (referred_B > 0)
    return np.where(defined_B, 2 * correct_B / (estimated_B + referred_B),
                    np.nan)


# --- Every measure ---


def maximise(name: str) -> bool:
  """Returns whether larger values of a measure are better."""
  return name != ERROR_RATE


def bounded(name: str) -> bool:
  """Returns whether a measure lies between 0 and 1."""
  return name not in ('d_prime', ERROR_RATE)


def mean_of_defined(q_BC: np.ndarray, axis: int) -> np.ndarray:
  """Returns means over an axis without NaN, NaN if all values are."""
  defined_BC = ~np.isnan(q_BC)
  count_B = defined_BC.sum(axis)
  total_B = np.where(defined_BC, q_BC, 0).sum(axis)
  return np.where(count_B > 0, total_B / np.maximum(count_B, 1), np.nan)


def mean(values: Iterable[float]) -> float:
  """Returns the mean of the values that are not NaN, NaN if there are none."""
  defined = [v for v in values if not math.isnan(v)]
  if not defined:
    return math.nan
  return float(np.mean(defined))


def std(values: Iterable[float]) -> float:
  """Returns the standard deviation (n - 1) of the values that are not NaN.

  NaN if there are fewer than two of them.
  """
  defined = [v for v in values if not math.isnan(v)]
  if len(defined) < 2 or not np.isfinite(defined).all():
    return math.nan
  return float(np.std(defined, ddof=1))
