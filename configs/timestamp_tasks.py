"""Events and long recordings: the tasks that the paper left out.

  python -m launch.sweep --scale=small --root=runs/timestamp_tasks \
      --config=configs/timestamp_tasks.py

Question: does RankMe tell the score on events in time and on long recordings
as on short clips, and do they want a longer context? The synthetic dataset's
`sound_events` asks when which sound begins (onset F within 200 ms, as HEAR's
DCASE 2016); `hive_share` and `hive_order` are a minute each, as Beehive's are
long: of the one any few seconds say a little, of the other none say anything.
Clips longer than the training crop are encoded crop by crop. The report's
table of tasks has each task's own correlation with RankMe; events are not in
the mean score. At paper scale name HEAR's own task folders by
--config.eval.tasks. The long tasks take 1.2 gigabytes of disk at small scale.
Cost: paper 9 runs, 4.9e18 FLOPs, 17 hours of a TPU v5e at 40 %;
small 9 runs, 8.2e12 FLOPs, some 6 core-minutes a run.
It fails if a task's correlation with RankMe has the other sign than that of
the short scenes, or if no crop length lifts hive_order off one half: then the
task, or scenes that are means of chunks, cannot show a long context.
"""

from configs import scales

SECONDS = {'paper': (2.07, 10.07, 20.15), 'small': (2.07, 4.15, 8.31),
           'smoke': (4.15,)}
RATES = {'paper': (.5, .75, .9), 'small': (.5, .75, .9), 'smoke': (.5, .75)}


def get_config(point='small/crop=2.07,mask=0.75'):
  """Returns the config of a crop length and a masking rate."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'timestamp_tasks'
  scales.crop(c, float(values['crop']), 4)
  # As many positions as a crop has patches: what is longer is cut there.
  frames = 1 + round(c.data.crop_seconds * 100)
  c.model.target_frames = frames - frames % c.model.patch_frames
  c.mask.ratio = float(values['mask'])
  c.eval.batch = 20  # A minute each.
  c.data.world.tasks = ('scene', 'temporal_rhythm', 'sound_events',
                        'hive_order', 'hive_share')
  if scale == 'small':
    c.data.world.update({'train_clips': 120, 'valid_clips': 40,
                         'test_clips': 160})
  if scale == 'smoke':
    c.data.world.update({'train_clips': 12, 'valid_clips': 6,
                         'test_clips': 12,
                         'tasks': ('sound_events', 'hive_order')})
  return c


def points(scale='small'):
  """Returns a point per crop length and rate."""
  return [scales.point(scale, crop=seconds, mask=rate)
          for seconds in SECONDS[scale] for rate in RATES[scale]]
