"""Runs and their results on disk, and the tables rebuilt from them.

  <root>/<run_id>/config.json              resolved, canonical
                 /records/<kind>-<step>.json   one result each
                 /metrics.jsonl            the training curve
                 /LEASE  /DONE  /FAILED    state, written whole or not at all
  <root>/runs.parquet, history.parquet, tasks.parquet, curves.parquet

The JSON files are the truth; the tables are a cache that `collect` rebuilds.
"""

from audiorank.config import complete
from audiorank.config import frozen
from audiorank.config import identity
from audiorank.config import plain
from audiorank.config import run_id
from audiorank.files import digest
from audiorank.files import json_line as line
from audiorank.files import read_json
from audiorank.files import read_lines
from audiorank.files import write_json
from audiorank.records.curve_table import curves
from audiorank.records.run_dir import config_tree
from audiorank.records.run_dir import cut_metrics
from audiorank.records.run_dir import load_config
from audiorank.records.run_dir import metric_rows
from audiorank.records.run_dir import open_run
from audiorank.records.run_dir import path
from audiorank.records.run_dir import read
from audiorank.records.run_dir import read_record
from audiorank.records.run_dir import read_whole
from audiorank.records.run_dir import same_evaluation
from audiorank.records.run_dir import state
from audiorank.records.run_dir import TIMES
from audiorank.records.run_dir import write
from audiorank.records.sweep import collect
from audiorank.records.sweep import index
from audiorank.records.sweep import joined
from audiorank.records.sweep import load
from audiorank.records.sweep import publish
from audiorank.records.sweep import run_folders
from audiorank.records.sweep import SAMPLE
from audiorank.records.sweep import samples
from audiorank.records.sweep import sweep_folders
from audiorank.records.sweep import Tables
from audiorank.records.sweep import tables
