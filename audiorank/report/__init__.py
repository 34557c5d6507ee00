"""A sweep's records -> report.html: one file, images inside, nothing else.

The page is rebuilt from the records alone; it never needs the runs' data.
"""

from audiorank.report.document import page, write
