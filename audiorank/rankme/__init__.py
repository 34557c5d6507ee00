"""Effective rank of embeddings: exact, streaming, sharded, with an interval.

`rankme` and `estimate` are the two numbers most want; `singular_values` and
`metrics` stand under them, a `State` holds what streams by. Conventions,
accuracy and coverage are in audiorank/README.md.
"""

from audiorank.rankme.interval import assign_blocks
from audiorank.rankme.interval import state_of
from audiorank.rankme.gram import LowPrecision
from audiorank.rankme.geometry import diff_erank
from audiorank.rankme.geometry import directions
from audiorank.rankme.geometry import lidar
from audiorank.rankme.geometry import mean_cosine
from audiorank.rankme.geometry import normalised_std
from audiorank.rankme.geometry import self_clustering
from audiorank.rankme.geometry import token_rank
from audiorank.rankme.geometry import uniformity
from audiorank.rankme.neighbours import measures as neighbourhood
from audiorank.rankme.interval import Estimate
from audiorank.rankme.interval import estimate
from audiorank.rankme.interval import curve
from audiorank.rankme.spectrum import device_program
from audiorank.rankme.spectrum import effective_rank
from audiorank.rankme.spectrum import rankme
from audiorank.rankme.spectrum import singular_values
from audiorank.rankme.spectrum import SmallSample
from audiorank.rankme.streaming import init
from audiorank.rankme.streaming import merge
from audiorank.rankme.streaming import restore
from audiorank.rankme.streaming import save
from audiorank.rankme.streaming import State
from audiorank.rankme.streaming import update
from audiorank.rankme.summaries import certificate
from audiorank.rankme.summaries import metrics
