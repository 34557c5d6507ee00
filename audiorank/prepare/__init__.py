"""Turns a folder or archive of sound files into a corpus for training.

`run` prepares files, `write` waves that a program made. Both write a folder
that `data.load` reads:

  corpus.json       rate, hours, counts, settings; written last
  manifest.csv      one row per record: shard, position, source, file, ...
  shards/           ArrayRecord files, each with a .json of its contents
  quarantine.jsonl  one line per refused file: file, reason, detail, sha256
  plan.json         the input and the settings that the folder belongs to
"""

# The input is listed and divided into shards before anything is decoded, from
# names and sizes alone. So the result does not depend on the number of workers,
# and a job that was killed resumes with the missing shards.
from audiorank.prepare.job import run
from audiorank.prepare.job import write

__all__ = ['run', 'write']
