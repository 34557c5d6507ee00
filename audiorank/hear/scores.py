"""HEAR's scores, equal to hear-eval-kit's (sklearn 1.9, sed_eval 0.2.1).

Scene scores take p_NC, predicted probabilities, and y_NC, zeros and ones.
Event scores take two dictionaries file -> events; an event is a dictionary of
label, start and end in milliseconds. Infinity and NaN come out where the kit
has them: an AUC of 1 makes d' infinite, a class without positives or without
negatives makes AUC and d' undefined, no predicted event makes F undefined.

Shapes: N clips, C classes, R reference events, E estimated events.
"""

import math

import numpy as np
from scipy import sparse
from scipy import special

# sed_eval divides an error rate by the count plus this.
TINY = float(np.spacing(1.0))
ONSET_MS = {'event_onset_200ms_fms': (200.0, None),
            'event_onset_50ms_fms': (50.0, None),
            'event_onset_offset_50ms_20perc_fms': (50.0, 0.2)}


def top1_acc(p_NC, y_NC):
  """Fraction of rows whose largest prediction is the labelled class."""
  return float(np.mean(p_NC.argmax(1) == y_NC.argmax(1)))


def chroma_acc(p_NC, y_NC):
  """Accuracy of the class index modulo 12: octave errors are forgiven."""
  return float(np.mean(p_NC.argmax(1) % 12 == y_NC.argmax(1) % 12))


def average_precision(p_NC, y_NC):
  """ap_C, area under the step-wise precision-recall curve of each class.

  Sum over thresholds of precision times the step in recall, which is the
  mean over positives of the precision at their own score, ties included.
  A class without positives gets 0, as in sklearn.
  """
  ap_C = np.zeros(p_NC.shape[1])
  for c in range(len(ap_C)):
    p_N, on_N = p_NC[:, c], y_NC[:, c] > 0
    if on_N.any():
      all_N, hit_P = np.sort(p_N), np.sort(p_N[on_N])
      retrieved_P = len(all_N) - np.searchsorted(all_N, hit_P, 'left')
      relevant_P = len(hit_P) - np.searchsorted(hit_P, hit_P, 'left')
      ap_C[c] = np.mean(relevant_P / retrieved_P)
  return ap_C


def auc(p_NC, y_NC):
  """auc_C, area under each class's ROC curve (Mann-Whitney, ties half).

  NaN for a class without positives or without negatives.
  """
  auc_C = np.full(p_NC.shape[1], np.nan)
  for c, (p_N, on_N) in enumerate(zip(p_NC.T, y_NC.T > 0)):
    pairs = on_N.sum() * (~on_N).sum()
    if pairs and not np.isnan(p_N).any():
      off_N = np.sort(p_N[~on_N])
      below, upto = (np.searchsorted(off_N, p_N[on_N], side).sum()
                     for side in ('left', 'right'))
      auc_C[c] = (below + upto) / (2 * pairs)
  return auc_C


def mean_ap(p_NC, y_NC):
  """Macro mean of `average_precision`."""
  return float(np.mean(average_precision(p_NC, y_NC)))


def aucroc(p_NC, y_NC):
  """Macro mean of `auc`; NaN where any class is undefined."""
  return float(np.mean(auc(p_NC, y_NC)))


def d_prime(p_NC, y_NC):
  """Macro mean of sqrt(2) Phi^-1(AUC); infinite for a perfect class."""
  with np.errstate(invalid='ignore'):
    return float(np.mean(math.sqrt(2) * special.ndtri(auc(p_NC, y_NC))))


def event_onset_fms(predicted, reference, collar_ms, length_share=None):
  """f_measure, precision, recall over all events of all files.

  An estimated event may be matched to a reference event of the same file and
  label whose start is within `collar_ms`, and, with `length_share`, whose
  end is within max(collar_ms, length_share x reference length); the largest
  matching counts (sed_eval's 'optimal'). Only files that `predicted` names
  are looked at. Precision is NaN without estimated events, recall without
  reference events, F with either.
  """
  hits = estimated = referred = 0
  for file, events in predicted.items():
    truth = reference.get(file, ())
    estimated += len(events)
    referred += len(truth)
    for label in {event['label'] for event in events}:
      hits += _matches([e for e in truth if e['label'] == label],
                       [e for e in events if e['label'] == label],
                       collar_ms, length_share)
  precision = hits / estimated if estimated else math.nan
  recall = hits / referred if referred else math.nan
  if precision == 0 and recall == 0:
    f_measure = 0.0
  else:
    f_measure = 2 * precision * recall / (precision + recall)
  return {'f_measure': f_measure, 'precision': precision, 'recall': recall}


def _matches(truth, events, collar_ms, length_share):
  # Seconds, as sed_eval compares them: a difference of exactly the collar
  # falls on the same side after the same roundings.
  times = lambda found, key: np.array([e[key] for e in found]) / 1000.0
  gap_RE = np.abs(np.subtract.outer(times(truth, 'start'),
                                    times(events, 'start')))
  ok_RE = gap_RE <= collar_ms / 1000.0
  if length_share is not None and len(truth):
    length_R1 = (times(truth, 'end') - times(truth, 'start'))[:, None]
    gap_RE = np.abs(np.subtract.outer(times(truth, 'end'),
                                      times(events, 'end')))
    ok_RE &= gap_RE <= np.maximum(collar_ms / 1000.0, length_share * length_R1)
  if not ok_RE.any():
    return 0
  match_R = sparse.csgraph.maximum_bipartite_matching(
      sparse.csr_array(ok_RE), perm_type='column')
  return int(np.sum(match_R >= 0))


def segment_1s_er(predicted, reference, labels):
  """Error rate over 1 s segments: (S + D + I) / reference activity.

  An event marks every second it touches; per file the grid ends with the
  last event of either kind.
  """
  column = {label: c for c, label in enumerate(labels)}
  errors = active = 0
  for file, events in predicted.items():
    truth = reference.get(file, ())
    ends = [e['end'] / 1000.0 for e in (*truth, *events)]
    seconds = math.ceil(max(ends, default=0.0))
    truth_TC, found_TC = (
        _roll(found, column, seconds) for found in (truth, events))
    truth_T, found_T = truth_TC.sum(1), found_TC.sum(1)
    hit_T = (truth_TC & found_TC).sum(1)
    # Substitutions min(ref, sys) - tp, plus |ref - sys| deleted or inserted.
    errors += int(np.sum(np.maximum(truth_T, found_T) - hit_T))
    active += int(truth_T.sum())
  return errors / (active + TINY)


def _roll(events, column, seconds):
  roll_TC = np.zeros((seconds, len(column)), bool)
  for event in events:
    start = math.floor(event['start'] / 1000.0)
    roll_TC[start:math.ceil(event['end'] / 1000.0), column[event['label']]] = 1
  return roll_TC


SCENE = {'top1_acc': top1_acc, 'pitch_acc': top1_acc, 'chroma_acc': chroma_acc,
         'mAP': mean_ap, 'aucroc': aucroc, 'd_prime': d_prime}
EVENT = (*ONSET_MS, 'segment_1s_er')


def maximise(name):
  """Whether larger is better."""
  return name != 'segment_1s_er'


def scene(names, p_NC, y_NC):
  """Dictionary name -> value of the named scene scores."""
  return {name: SCENE[name](p_NC, y_NC) for name in names}


def event(names, predicted, reference, labels):
  """Dictionary of the named event scores.

  An F score appears under its own name and as <name>_precision and
  <name>_recall.
  """
  out = {}
  for name in names:
    if name == 'segment_1s_er':
      out[name] = segment_1s_er(predicted, reference, labels)
    else:
      found = event_onset_fms(predicted, reference, *ONSET_MS[name])
      out[name] = found['f_measure']
      out[f'{name}_precision'] = found['precision']
      out[f'{name}_recall'] = found['recall']
  return out
