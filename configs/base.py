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
  match = re.fullmatch(r'en(\d+)-(\d+)', name)
  if not match:
    raise ValueError(f'size {name!r}: expected en<width>-<depth>, such as '
                     'en128-12')
  width, depth = int(match[1]), int(match[2])
  config.model.width = width
  config.model.depth = depth
  # Published for these widths; else 64 dimensions a head, 32 in small models.
  dimensions = 64 if width >= 256 else 32
  config.model.heads = HEADS.get(width) or max(1, width // dimensions)
  return config


def get_config(point='en768-12'):
  """Dasheng's recipe (arXiv 2406.06992) at the size named by `point`."""
  config = config_dict.ConfigDict()
  config.experiment = 'base'  # Shown in tables; no part of a run's identity.
  config.seed = 0  # Initialisation and masks.
  config.trackers = ()  # Beside metrics.jsonl: tensorboard, wandb, trackio.
  config.objective = 'mae'  # What is minimised: see audiorank/objectives.py.
  config.model = model()
  config.mask = mask()
  # Each is read by the objective of its name alone.
  config.contrastive = contrastive()
  config.latent = latent()
  config.data = data()
  config.train = train()
  config.opt = opt()
  config.monitor = monitor()
  config.checkpoint = checkpoint()
  config.eval = evaluation()
  config.mesh = mesh()
  if point in points():  # The published sizes, which take an accelerator.
    config.model.dtype = 'bfloat16'
  return size(config, point)


def model():
  """The encoder and the decoder it is trained with."""
  part = config_dict.ConfigDict()
  part.width = 768  # D, the embedding's length.
  part.depth = 12  # Blocks.
  part.heads = 12  # Attention heads.
  part.mlp_ratio = 4  # Hidden width of a block's MLP over D.
  part.frontend = 'log_mel'  # Or 'pixels': see audiorank/images.py.
  part.mels = 64  # Mel bins, 0-8000 Hz, HTK scale; rows of a picture.
  part.patch_frames = 4  # Frames (10 ms each) of a patch: 40 ms tokens.
  part.target_frames = 1008  # Frames with a learned position (10.08 s).
  part.dtype = 'float32'  # Of blocks; bfloat16 where accelerators train.
  part.remat = 'auto'  # Recomputed backwards: none, (all but) dots, full.
  part.unroll = 0  # Blocks written out one by one; 0: as is fastest.
  part.decoder = decoder = config_dict.ConfigDict()
  decoder.width = 512  # Fixed whatever the encoder, as in Dasheng.
  decoder.depth = 8  # Blocks.
  decoder.heads = 16  # Attention heads.
  return part


def mask():
  """Which tokens the encoder does not see."""
  part = config_dict.ConfigDict()
  part.ratio = .75  # Share of tokens removed.
  part.group_size = 2  # Neighbouring tokens removed together.
  return part


def contrastive():
  """Two crops of a clip are told from other clips' (NT-Xent)."""
  part = config_dict.ConfigDict()
  part.share = .5  # Length of each of the two crops, over the training crop's.
  part.hidden = 512  # Hidden units of the projection head.
  part.width = 128  # Of the projections that are compared.
  part.temperature = .1  # Divides their cosines.
  return part


def latent():
  """The embeddings of an averaged teacher are predicted."""
  part = config_dict.ConfigDict()
  part.decay = .999  # Of the teacher, a moving average of the encoder.
  return part


def data():
  """The corpus, and the synthetic one that stands in for it."""
  part = config_dict.ConfigDict()
  part.root = ''  # A prepared corpus; '' is the synthetic dataset.
  # Further corpora, each with its share of the clips beside the 1 of the root.
  part.mixture = ()  # Such as ('/data/music=.5', '/data/birds=2').
  part.sha256 = ''  # Checksum of manifests and shares; the sweep fills it in.
  part.category = ()  # Categories trained on; () is every one.
  part.hours = 0.  # Hours of training audio; 0 takes all there are.
  part.valid_fraction = .05  # Sources held out of training, for valid_loss.
  part.seed = 0  # Order of clips and their crops.
  part.subset_seed = 0  # The permutation whose prefixes are the subsets.
  part.crop_seconds = 10.  # Training crop.
  # Each training clip is made louder by a random number of dB between these
  # (Dasheng's trainer can: -6 to 10); 0 and 0 leave it as it is.
  part.gain_low = 0.  # In dB.
  part.gain_high = 0.  # In dB.
  part.threads = 4  # Reading threads of each process.
  # Accelerators keep the audio in their own memory where it fits (feed.py).
  part.in_memory = False  # Keep it in the host's memory, whatever its size.
  part.world = world = config_dict.ConfigDict()  # Of the synthetic dataset:
  world.seed = 0  # Another seed makes other sounds.
  world.hours = 1.  # Pretraining audio written.
  world.train_clips = 400  # Labelled clips of each task's splits.
  world.valid_clips = 150  # The split that chooses the predictor's settings.
  world.test_clips = 400  # The split that is scored.
  # Names of its tasks; () is all but the long ones.
  world.tasks = ()  # See audiorank/synth/tasks.py.
  return part


def train():
  """The length of training, and what a step is."""
  part = config_dict.ConfigDict()
  part.steps = 1_500_000  # 0 makes the untrained baseline.
  part.batch = 256  # Clips of a step, over all devices.
  part.init_scale = 1.  # Factor on every initial weight matrix.
  # Start at the statistics of the monitor's clips, not at 0 and 1:
  part.calibrate_batch_norm = True  # The input's BatchNorm.
  part.log_every = 100  # Steps between rows of metrics.jsonl.
  part.steps_per_call = 1  # More where starting a program takes long.
  # Steps may be left out if their loss or gradient is not finite:
  part.max_skipped_steps = 0  # So many; 0 fails at the first.
  return part


def opt():
  """AdamW with a linear warm-up and a decay."""
  part = config_dict.ConfigDict()
  part.lr = 3e-4  # Peak learning rate.
  # The encoder's width for which lr and the initial weights are set; at other
  # widths they follow by muP (audiorank/mup.py).
  part.transfer = 0  # 0: the same rate at every width.
  part.warmup = 45_000  # Steps of linear warm-up from 0.
  part.final_lr_ratio = .1  # Last learning rate over the peak.
  # wsd stays constant and then decays linearly: runs of several durations share
  # what comes before the decay (audiorank/branch.py).
  part.schedule = 'cosine'  # Or 'wsd'; cosine decays from the warm-up on.
  part.decay = .1  # Share of the steps in which wsd decays.
  part.b1 = .9  # Decay of Adam's first moment.
  part.b2 = .999  # Decay of its second moment.
  part.weight_decay = .01  # Decoupled, on every parameter, as in Dasheng.
  part.clip = 0.  # Global gradient norm; 0 does not clip.
  return part


def monitor():
  """When RankMe and the validation loss are measured, and on which clips."""
  part = config_dict.ConfigDict()
  part.clips = 30_000  # Clips of RankMe's fixed sample (paper: 30k).
  part.crop_seconds = 10.  # Their length.
  part.seed = 0  # Which clips.
  part.num_evals = 12  # Step 0, the rest log-spaced to the end.
  part.eval_every = 0  # Steps between further evaluations; 0 adds none.
  part.first_eval = 1_000  # The first after step 0, if there are more than 2.
  # Blocks measured beside the final layer, such as (0, 5); ('all',) is all.
  # Each one, and the final one, then has the rank of single tokens too;
  # ('final',) adds it to the final layer alone.
  part.layers = ()
  # Clips whose distances give dimensions and clusters (rankme.neighbourhood),
  # rivals of RankMe in the report. 2,000 take about 1 s.
  part.neighbour_clips = 0  # 0 leaves them out.
  # Clips whose views (crops with masked tokens, as in training) give LiDAR. It
  # costs lidar_clips * lidar_views clips to embed.
  part.lidar_clips = 0  # 0 leaves it out; at best more than model.width.
  part.lidar_views = 10  # Of each clip.
  # A scene task of eval.tasks whose kNN score is measured at every evaluation:
  # its clips are embedded each time.
  part.knn_task = ''  # '' is none.
  # Further samples RankMe is measured on, at the first evaluation and the
  # last: categories, 'valid' (the held-out recordings) and 'train' (what this
  # very run trains on).
  part.samples = ()  # Such as ('valid', 'speech').
  part.batch = 256  # Clips embedded at once.
  part.valid_clips = 1_024  # Held-out clips of valid_loss; a multiple of batch.
  return part


def checkpoint():
  """What is saved, and what stays."""
  part = config_dict.ConfigDict()
  part.save_every = 5_000  # Steps between saves.
  part.keep_every = 50_000  # Steps whose checkpoints stay for good.
  return part


def evaluation():
  """The tasks a run is scored on, and how."""
  part = config_dict.ConfigDict()
  part.tasks = ''  # Folder of HEAR task folders; '' is the synthetic ones.
  part.task_names = ()  # Names of its folders; () takes every one.
  part.sha256 = ''  # Checksum of what describes them; the sweep fills it in.
  part.protocol = 'hear'  # Predictor: see audiorank/hear/README.md.
  # Score every layer, and the one that is best on the validation clips.
  part.every_layer = False  # Off: the final one.
  part.grid_points = 8  # Of HEAR's 16 hyper-parameter settings.
  part.hidden = 1024  # Units of a hidden layer.
  part.max_epochs = 500  # Of a predictor.
  part.batch = 64  # Clips embedded at once.
  part.seed = 42  # Of its initialisation.
  return part


def mesh():
  """How the devices of a run are laid out."""
  part = config_dict.ConfigDict()
  part.data = -1  # Devices along data; -1 takes what fsdp leaves.
  part.fsdp = 1  # Devices along fsdp.
  return part


def points():
  """The published Dasheng sizes."""
  return ['en768-12', 'en1280-32', 'en1536-40']
