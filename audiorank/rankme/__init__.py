"""Effective rank of embeddings: exact, streaming, sharded, with an interval.
"""

from audiorank.rankme.spectrum import effective_rank
from audiorank.rankme.spectrum import LowPrecision
from audiorank.rankme.spectrum import rankme
from audiorank.rankme.spectrum import singular_values
from audiorank.rankme.spectrum import SmallSample
from audiorank.rankme.streaming import init
from audiorank.rankme.streaming import merge
from audiorank.rankme.streaming import restore
from audiorank.rankme.streaming import save
from audiorank.rankme.streaming import State
from audiorank.rankme.streaming import update
