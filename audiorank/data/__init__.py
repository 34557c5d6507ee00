"""The stream of training clips: a pure function of (seed, step, process).

A corpus is what `prepare` wrote: records of at most some 30 s of sound, each
with the name of the recording that it was cut from.
"""

# Every random choice of this package (which recordings, in which order, where
# to crop) comes from hashes or from the raw bits of a counter-based generator.
# numpy guarantees these streams; Generator.permutation and the like may change
# between releases, and would change old runs with them.
from audiorank.data.clips import clip_names
from audiorank.data.clips import clips_in
from audiorank.data.clips import sample
from audiorank.data.clips import schedule
from audiorank.data.clips import stream
from audiorank.data.folder import Corpus
from audiorank.data.folder import verify
from audiorank.data.mixture import load
from audiorank.data.selection import categories
from audiorank.data.selection import has_categories
from audiorank.data.selection import of_categories
from audiorank.data.selection import split
from audiorank.data.selection import subset

__all__ = ['Corpus', 'categories', 'clip_names', 'clips_in', 'has_categories',
           'load', 'of_categories', 'sample', 'schedule', 'split', 'stream',
           'subset', 'verify']
