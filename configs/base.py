"""Every field of an experiment, with what it means; the paper-scale default.

  python -m launch.train --config=configs/base.py:en768-12 --workdir=DIR

A file of configs/ has get_config(point), the resolved config of one point,
and points(), the names of its points. Fields are overridden on the command
line: --config.train.steps=1000.
"""

import re

from ml_collections import config_dict

HEADS = {768: 12, 1280: 16, 1536: 24}


def size(config, name):
  """Sets width, depth and heads of a size such as 'en128-12'."""
  found = re.fullmatch(r'en(\d+)-(\d+)', name)
  if not found:
    raise ValueError(f'size {name!r}: expected en<width>-<depth>, such as '
                     'en128-12')
  width, depth = int(found[1]), int(found[2])
  config.model.width = width
  config.model.depth = depth
  config.model.heads = HEADS.get(width) or max(
      1, width // (64 if width >= 256 else 32))
  return config


def get_config(point='en768-12'):
  """Dasheng's recipe (arXiv 2406.06992) at the size named by `point`."""
  c = config_dict.ConfigDict()
  c.experiment = 'base'  # Shown in tables; no part of a run's identity.
  c.seed = 0  # Initialisation and masks.
  c.track = ''  # Trackers beside metrics.jsonl: tensorboard,wandb,trackio.
  c.objective = 'mae'  # What is minimised: see audiorank/objectives.py.

  m = c.model = config_dict.ConfigDict()
  m.width = 768  # D, the embedding's length.
  m.depth = 12  # Blocks.
  m.heads = 12  # Attention heads.
  m.mlp_ratio = 4  # Hidden width of a block's MLP over D.
  m.front = 'log_mel'  # What a wave becomes; 'pixels': see audiorank/images.py.
  m.mels = 64  # Mel bins, 0-8000 Hz, HTK scale; rows of a picture.
  m.patch_frames = 4  # Frames (10 ms each) of a patch: 40 ms tokens.
  m.target_frames = 1008  # Frames that have a learned position (10.08 s).
  m.dtype = 'float32'  # Compute type; 'bfloat16' on accelerators.
  m.remat = False  # Recompute activations in the backward pass.
  m.unroll = 1  # Blocks unrolled in the scan; the depth is fastest on CPU.
  d = m.decoder = config_dict.ConfigDict()
  d.width = 512  # Fixed whatever the encoder, as in Dasheng.
  d.depth = 8  # Blocks.
  d.heads = 16  # Attention heads.

  k = c.mask = config_dict.ConfigDict()
  k.ratio = .75  # Share of tokens removed.
  k.group = 2  # Neighbouring tokens removed together.

  # Of the objective of its name alone:
  v = c.contrastive = config_dict.ConfigDict()
  v.share = .5  # Length of each of the two crops, over the training crop's.
  v.hidden = 512  # Hidden units of the projection head.
  v.width = 128  # Of the projections that are compared.
  v.temperature = .1  # Divides their cosines.
  n = c.latent = config_dict.ConfigDict()
  n.decay = .999  # Of the teacher, a moving average of the encoder.

  a = c.data = config_dict.ConfigDict()
  a.root = ''  # A prepared corpus; '' is the embedded default world.
  # Further corpora, each with its share of the clips beside the 1 of the root:
  a.mixture = ''  # Such as '/data/music=.5,/data/birds=2'.
  a.sha256 = ''  # Checksum of manifests and shares; the sweep fills it in.
  a.category = ''  # Comma-separated categories trained on; '' is every one.
  a.hours = 0.  # Hours of training audio; 0 takes all there are.
  a.valid_fraction = .05  # Sources held out of training, for valid_loss.
  a.seed = 0  # Order of clips and their crops.
  a.subset_seed = 0  # The permutation whose prefixes are the subsets.
  a.crop_seconds = 10.  # Training crop.
  # Each training clip is made louder by a random number of dB between these,
  a.gain_low = 0.  # as Dasheng's trainer can: -6
  a.gain_high = 0.  # to 10; 0 and 0 leave it as it is.
  a.threads = 4  # Reading threads of each process.
  a.resident = False  # Keep the whole subset in memory.
  w = a.world = config_dict.ConfigDict()  # Of the default world alone:
  w.seed = 0  # Another seed is another world.
  w.hours = 1.  # Pretraining audio written.
  w.train_clips = 400  # Labelled clips of each task's splits.
  w.valid_clips = 150  # The split that chooses the predictor's settings.
  w.test_clips = 400  # The split that is scored.
  # Comma-separated names of its tasks; '' makes all but the long ones.
  w.tasks = ''  # See audiorank/synth/tasks.py.

  t = c.train = config_dict.ConfigDict()
  t.steps = 1_500_000  # 0 makes the untrained twin.
  t.batch = 256  # Clips of a step, over all devices.
  t.init_scale = 1.  # Factor on every initial weight matrix.
  t.calibrate = True  # Start BatchNorm at the monitor clips' statistics.
  t.log_every = 100  # Steps between rows of metrics.jsonl.
  t.call = 1  # Steps of one program: more where starting it takes long.
  t.skip = 0  # Steps not finite that may be left out; 0 fails at the first.

  o = c.opt = config_dict.ConfigDict()
  o.lr = 3e-4  # Peak learning rate.
  o.warmup = 45_000  # Steps of linear warm-up from 0.
  o.final = .1  # Last learning rate over the peak: cosine decay.
  o.b1 = .9  # Decay of Adam's first moment.
  o.b2 = .999  # Decay of its second moment.
  o.weight_decay = .01  # Decoupled, on every parameter, as in Dasheng.
  o.clip = 0.  # Global gradient norm; 0 does not clip.

  r = c.monitor = config_dict.ConfigDict()
  r.clips = 30_000  # Clips of RankMe's fixed sample (paper: 30k).
  r.crop_seconds = 10.  # Their length.
  r.seed = 0  # Which clips.
  r.readings = 12  # RankMe readings: step 0, the rest log-spaced to the end.
  r.every = 0  # Steps between further readings; 0 adds none.
  r.first = 1_000  # Reading after step 0, if there are more than 2.
  r.layers = ''  # Blocks read beside the final layer, such as '0,5,11'.
  # Further samples RankMe is read on, at the first reading and the last:
  # comma-separated categories, 'valid' (the held-out recordings) and 'train'
  # (what this very run trains on).
  r.samples = ''  # Such as 'valid,speech'.
  r.batch = 256  # Clips embedded at once.
  r.valid_clips = 1_024  # Held-out clips of valid_loss; a multiple of batch.

  p = c.checkpoint = config_dict.ConfigDict()
  p.every = 5_000  # Steps between saves.
  p.keep = 50_000  # Steps whose checkpoints stay for good.

  e = c.eval = config_dict.ConfigDict()
  e.tasks = ''  # Folder of HEAR task folders; '' is the default world's.
  e.names = ''  # Comma-separated folder names; '' takes every one.
  e.protocol = 'hear'  # Predictor: see audiorank/hear/README.md.
  e.grid_points = 8  # Of HEAR's 16 hyper-parameter settings.
  e.hidden = 1024  # Units of a hidden layer.
  e.max_epochs = 500  # Of a predictor.
  e.batch = 64  # Clips embedded at once.
  e.seed = 42  # Of its initialisation.

  s = c.mesh = config_dict.ConfigDict()
  s.data = -1  # Devices along data; -1 takes what fsdp leaves.
  s.fsdp = 1  # Devices along fsdp.
  return size(c, point)


def points():
  """The published Dasheng sizes."""
  return ['en768-12', 'en1280-32', 'en1536-40']
