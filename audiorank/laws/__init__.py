"""Scaling laws: fitted to their optimum, with honest intervals.

`fit(form, data, loss=..., groups=...)` returns a `Fit` with `params`,
`objective`, `converged`, `ci(name, method)`, `predict(x, band=)`,
`diagnostics` and `report()`; `compare` and `compare_predictors` judge by
left-out data; `scaling`, `ranking` and `failures` answer what to scale, what
to stop and what went wrong; `checklist` says how it was fitted, item by item.
"""

from audiorank.laws import checklist
from audiorank.laws import failures
from audiorank.laws import ranking
from audiorank.laws import ranking as early
from audiorank.laws import scaling
from audiorank.laws import select as choose
from audiorank.laws import table
from audiorank.laws.fit import Band
from audiorank.laws.fit import Fit
from audiorank.laws.fit import fit
from audiorank.laws.forms import Form
from audiorank.laws.forms import FORMS
from audiorank.laws.forms import NonlinearParam
from audiorank.laws.intervals import profile
from audiorank.laws.intervals import threshold
from audiorank.laws.predictors import compare_predictors
from audiorank.laws.predictors import rivals
from audiorank.laws.select import compare
from audiorank.laws.select import held_out
from audiorank.laws.select import largest
from audiorank.laws.select import leave_one_out
