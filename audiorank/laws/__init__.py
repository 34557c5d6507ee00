"""Scaling laws: fitted to their exact optimum, with honest intervals.

`fit(form, data, loss=..., groups=...)` returns a `Fit` with `params`,
`objective`, `ci(name, method)`, `predict(x, band=)`, `diagnostics` and
`report()`; `compare` and `rivals` judge by left-out data; `scaling`, `early`
and `failures` answer what to scale, what to stop and what went wrong;
`checklist` says how it was fitted, item by item.
"""

from audiorank.laws import checklist
from audiorank.laws import early
from audiorank.laws import failures
from audiorank.laws import scaling
from audiorank.laws.choose import compare, held_out, largest, leave_one_out
from audiorank.laws.fit import Band, Fit, fit
from audiorank.laws.forms import FORMS, Form, Shape
from audiorank.laws.intervals import profile, threshold
from audiorank.laws.rivals import rivals, verdict
