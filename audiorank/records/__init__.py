"""Runs and their results on disk, and the tables rebuilt from them.

  <root>/<run_id>/config.json              resolved, canonical
                 /records/<kind>-<step>.json   one result each
                 /metrics.jsonl            the training curve
                 /LEASE  /DONE  /FAILED    state, written whole or not at all
  <root>/runs.parquet, history.parquet, tasks.parquet

The JSON files are the truth; the tables are a cache that `collect` rebuilds.
"""

from audiorank.records.runs import cut_metrics
from audiorank.records.runs import digest
from audiorank.records.runs import frozen
from audiorank.records.runs import identity
from audiorank.records.runs import line
from audiorank.records.runs import load_config
from audiorank.records.runs import open_run
from audiorank.records.runs import path
from audiorank.records.runs import plain
from audiorank.records.runs import read
from audiorank.records.runs import read_json
from audiorank.records.runs import run_id
from audiorank.records.runs import state
from audiorank.records.runs import TIMES
from audiorank.records.runs import write
from audiorank.records.runs import write_json
from audiorank.records.tables import collect
from audiorank.records.tables import load
from audiorank.records.tables import run_folders
from audiorank.records.tables import sweep_folders
from audiorank.records.tables import Tables
from audiorank.records.tables import tables
