"""Any folder or archive of sound -> checked int16 shards, manifest, quarantine.

`run` does it from files, `write` from waves made by a program; what they
leave behind is what `data.load` reads:

  corpus.json       rate, hours, counts, settings; written last
  manifest.csv      a row per record: shard, position, source, file, start, ...
  shards/           ArrayRecord files, and beside each a .json of its contents
  quarantine.jsonl  a line per refused file: file, reason, detail, sha256
  plan.json         what input and settings the folder belongs to

The input is listed and cut into shards before anything is decoded, by names
and sizes alone, so that the result does not depend on the number of workers,
and a job that was killed goes on with the shards that are missing.
"""

from audiorank.prepare.job import run
from audiorank.prepare.job import write

__all__ = ['run', 'write']
