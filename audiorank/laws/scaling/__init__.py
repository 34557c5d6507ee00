"""What to scale next: compute-optimal frontier, isoFLOP valleys, data bound.

Sizes N, amounts of data D, budgets C in any units, as long as the cost law
`data_at(C, N) -> D` says how much data a budget buys at a size. Dasheng's
fixed decoder is most of the compute of small encoders, so every table says
in `attrs['compute']` what its compute counts.
"""

from audiorank.laws.scaling.isoflop import valleys
from audiorank.laws.scaling.limit import Bound, data_bound
from audiorank.laws.scaling.optimal import frontier, longer_or_larger, six
