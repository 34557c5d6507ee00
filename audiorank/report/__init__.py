"""A sweep's records -> report.html: one file, figures inside, nothing else.

While a sweep runs, explore.LivePage writes the file; at the end `write` does.
The page is rebuilt from the records alone; it never needs the runs' data.
`wording` has every sentence; `wording.markdown(analysis.analyze(t).claims)`
is the table of claims.
"""

from audiorank.report import wording
from audiorank.report.explore import LivePage
from audiorank.report.page import page, write
