"""Clips from disk: ten-second crops of the prepared corpus, and of sound files.

CPU time on one core, the files in the page cache. The rival reads as many
crops from the sound files that the corpus was prepared of.
"""

import json
import pathlib
import tempfile
import time

from launch.benches import timing

PINNED = True
SECONDS, RATE = 10., 16_000
BATCH, BATCHES = 64, 32


def rows(quick, only):
  """Yields the Rows of this area."""
  from audiorank import data
  from audiorank import prepare
  from audiorank import synth
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    synth.write_audio(folder / 'audio', timing.sized(quick, .05, .3), 0,
                      progress=False)
    prepare.run(folder / 'audio', folder / 'corpus')
    # With pieces of 10 s a clip of 10 s is a whole record.
    for pieces in (30, 10):
      what = (f'a clip of 10 s from ArrayRecord, int16, records of at most '
              f'{pieces} s')
      if only in what:
        corpus = folder / f'pieces-{pieces}'
        prepare.run(folder / 'audio', corpus, piece_seconds=pieces)
        yield reading(what, data.load(corpus), folder / 'audio')
    what = 'waiting for input while training, en128-12, 10 s'
    if only in what:
      yield waiting(what, folder, timing.sized(quick, 12, 40))


def reading(what, corpus, audio):
  """Returns the Row of reading alone."""
  samples = int(SECONDS * RATE)

  def ours():
    # A stream of its own each time: opening the shards counts.
    stream = data_stream(corpus, samples)
    for _ in range(BATCHES):
      next(stream)

  try:
    import librosa
  except ModuleNotFoundError:
    return timing.absent(what, 'librosa')
  files = sorted(p for p in audio.rglob('*') if p.suffix in ('.wav', '.flac'))

  def theirs():
    for i in range(BATCH * BATCHES):
      # sr=None: no resampling, which ours has not either.
      librosa.load(files[i % len(files)], sr=None, offset=.1,
                   duration=SECONDS)

  return timing.turns(
      what, ours, theirs, 5, time.process_time, None,
      ('stream', f'librosa.load of {files[0].suffix[1:]}'),
      'at most 2.5e-4 s wanted',
      BATCH * BATCHES)


def data_stream(corpus, samples):
  from audiorank import data
  return data.stream(corpus, batch=BATCH, samples=samples, seed=0,
                     first_step=0, process_index=0, process_count=1,
                     threads=1, resident=False)


def waiting(what, folder, steps):
  """Returns the Row of the share of a run's time spent waiting."""
  from audiorank import records
  from audiorank import train
  from configs import base
  c = base.get_config('en128-12')
  c.model.decoder.update({'width': 128, 'depth': 4, 'heads': 4})
  c.data.update({'root': str(folder / 'corpus'), 'threads': 1})
  c.train.update({'steps': steps, 'batch': 8, 'log_every': 4})
  c.opt.warmup = 2
  c.monitor.update({'clips': 16, 'num_evals': 2, 'batch': 8, 'valid_clips': 0})
  records.open_run(folder / 'run', c)
  train.run(folder / 'run', records.load_config(folder / 'run'))
  lines = [json.loads(line) for line in
          (folder / 'run' / 'metrics.jsonl').read_text().splitlines()]
  # The first row has no rate, as it contains the compilation.
  lines = [row for row in lines if row.get('clips_per_second')]
  # Seconds of a row: 4 steps of 8 clips over their rate.
  spent = sum(4 * 8 / row['clips_per_second'] for row in lines)
  share = sum(row['waiting'] for row in lines) / spent
  return timing.alone(what, 100 * share, '%', None,
                      f'{len(lines)} rows of 4 steps of 8 clips, one core; at '
                      'most 2 % wanted')
