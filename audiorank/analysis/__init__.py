"""From a sweep's tables to claims: numbers, intervals, rivals, verdicts.

`analyze(tables)` is the one road. The report, the notebooks, the README's
table and `launch.report --table` all show what it returns; every sentence is
made in `audiorank.report.wording`.
"""

from typing import NamedTuple

import pandas as pd

from audiorank import files
from audiorank import laws
from audiorank import records
from audiorank.analysis import advice
from audiorank.analysis import early
from audiorank.analysis import factors
from audiorank.analysis import law
from audiorank.analysis import layers
from audiorank.analysis import objectives
from audiorank.analysis import scorings
from audiorank.analysis import size
from audiorank.analysis import study
from audiorank.analysis import training
from audiorank.analysis.advice import Advice
from audiorank.analysis.advice import Point
from audiorank.analysis.advice import REACH
from audiorank.analysis.claims import Claim
from audiorank.analysis.claims import FAILS
from audiorank.analysis.claims import HOLDS
from audiorank.analysis.claims import INCONCLUSIVE
from audiorank.analysis.claims import Needed
from audiorank.analysis.claims import Rival
from audiorank.analysis.decide import Plan


class Analysis(NamedTuple):
  """What a sweep shows.

  study: the rows it rests on.  claims: Claims, the most important first.
  fit: the law from rank to score, or None.  lacks: what it lacks, or None.
  predictors: a row a predictor of the score.  forms: a row a form of law.
  early: an early.Early.  diagnostics: a training.Diagnostics.
  tasks: a row a task.  scaling: what to scale next.
  """
  study: study.Study
  claims: tuple[Claim, ...]
  fit: laws.Fit | None
  lacks: Needed | None
  predictors: pd.DataFrame
  forms: pd.DataFrame
  early: early.Early
  diagnostics: training.Diagnostics
  tasks: pd.DataFrame
  scaling: advice.Advice


def analyze(tables: records.Tables, root: files.Path | None = None,
            price: float = 0.) -> Analysis:
  """Returns the Analysis of a sweep's tables.

  Args:
    tables: of the sweep.
    root: its folder, where the rates of training were written; None where
      there are the tables alone.
    price: of a chip-hour; 0 for none.
  """
  rows = study.read(tables)
  fit, lacks = law.fit(rows.trained)
  table = law.predictors(rows.trained)
  soon = early.predict(rows)
  scaling = advice.advise(rows)
  if root is not None:
    scaling = scaling._replace(rate=advice.rate(root, scaling.scaling),
                               price=price)
  return Analysis(
      rows, claims_of(rows, fit, lacks, table, soon), fit, lacks, table,
      law.forms(rows.trained, fit), soon, training.diagnose(rows, fit),
      training.tasks(rows), scaling)


def claims_of(rows: study.Study, fit: laws.Fit | None, lacks: Needed | None,
              table: pd.DataFrame, soon: early.Early) -> tuple[Claim, ...]:
  """Returns the claims of a study; none where nothing is scored.

  Args:
    rows: the study.
    fit: of `law.fit`.
    lacks: of `law.fit`.
    table: of `law.predictors`.
    soon: of `early.predict`.
  """
  if not len(rows.trained):
    return ()
  # The claim of the title first, then what a user decides by.
  compared = factors.compare(rows)
  one_slope, at_width = factors.of_one_slope(compared), factors.of_width(
      compared)
  out = [one_slope, at_width, law.of_rivals(rows, table),
         law.of_rivals(rows, law.predictors(rows.trained, within=True), True),
         early.of_early(rows, soon),
         *scorings.of_scorings(rows, one_slope, at_width),
         *factors.of_slopes(compared), law.of_law(rows, fit, lacks),
         factors.of_bound(compared), training.of_gain(rows),
         training.of_rank(rows), size.of_floor(rows), layers.of_order(rows),
         *size.of_power(rows), layers.of_best(rows),
         factors.of_noise(compared), law.of_samples(rows, table)]
  # Claims about what the records do not have are left out.
  return (*(one for one in out if one is not None),
          *objectives.of_objectives(rows, compared.noise))
