"""What a run is compared with, and which runs are the same training.

The untrained baseline of a run is its own network before the first step. A
network before its first step does not depend on how it would be trained, so
`untrained` resets all of that: runs that differ in the decoder, the order of
clips, the hours or a learning rate share one baseline, which is trained and
scored once.
"""

import json
from typing import Any

from ml_collections import config_dict

from audiorank import config as config_lib
from audiorank import files

# Objectives that start from one and the same encoder. Any other may
# initialise it in its own way: such a run keeps its objective and decoder.
ONE_ENCODER = ('mae', 'mae_batch', 'mae_raw', 'contrastive', 'latent')
# Parts of a config that are read by the objective of that name alone.
OBJECTIVE_PARTS = ('contrastive', 'latent')
# What an untrained baseline has in place of the run's own values: anything
# valid will do, as long as it is the same for every run.
DECODER = {'width': 32, 'depth': 1, 'heads': 1}
MASK = {'ratio': .75, 'group_size': 1}
TRAIN = {'steps': 0, 'max_skipped_steps': 0}
OPT = {'lr': 3e-4, 'warmup': 0, 'final_lr_ratio': .1, 'b1': .9, 'b2': .999,
       'weight_decay': .01, 'clip': 0, 'schedule': 'cosine', 'decay': .1,
       'transfer': 0}
DATA = {'category': [], 'hours': 0, 'seed': 0}
# An untrained network is read once, and its validation loss says nothing.
MONITOR = {'num_evals': 2, 'eval_every': 0, 'first_eval': 1, 'valid_clips': 0}


def untrained(config: Any) -> config_dict.FrozenConfigDict:
  """Returns the config of a run's untrained baseline.

  Architecture, seed, scale of the weights, corpus and the clips RankMe is
  measured on are the run's own, since they decide the untrained encoder (its
  BatchNorm starts at the statistics of those clips). So are the fields that
  are no part of a run's identity, the tasks among them. The baseline of a
  baseline is itself.

  Args:
    config: of a run: a config, or its JSON tree.
  """
  tree = config_lib.complete(config_lib.plain(config))
  if tree['objective'] in ONE_ENCODER:
    tree['objective'] = 'mae'
    tree['model']['decoder'].update(DECODER)
    tree['mask'].update(MASK)
    for part in OBJECTIVE_PARTS:
      tree[part] = dict(config_lib.LATER[part])
    # As many frames as the network has positions for.
    tree['data']['crop_seconds'] = round(
        (tree['model']['target_frames'] - 1) * .01, 2)
    # A batch that any mesh which embeds the clips can divide.
    tree['train']['batch'] = tree['monitor']['batch']
  tree['train'].update(TRAIN)
  tree['opt'].update(OPT)
  tree['data'].update(DATA)
  tree['monitor'].update(MONITOR)
  return config_lib.frozen(tree)


def untrained_id(config: Any) -> str:
  """Returns the run id of a run's untrained baseline."""
  return config_lib.run_id(untrained(config))


def training(config: Any) -> dict[str, Any]:
  """Returns the part of a config that decides what is trained.

  Of a run's identity all but what only says when and on what else it is
  measured, what belongs to another objective, and how a corpus was rendered
  whose contents are known by their checksum. Two configs with the same tree
  train the same network to the bit.

  Args:
    config: of a run: a config, or its JSON tree.
  """
  tree = config_lib.identity(config)
  for part in OBJECTIVE_PARTS:
    if part != tree['objective']:
      tree.pop(part, None)
  if tree['data']['sha256']:
    tree['data'].pop('world', None)
  # BatchNorm starts at the statistics of the clips RankMe is measured on.
  monitor = tree.pop('monitor')
  if tree['train']['calibrate_batch_norm']:
    tree['monitor'] = {name: monitor[name]
                       for name in ('clips', 'crop_seconds', 'seed')}
  return tree


def configuration(config: Any) -> dict[str, Any]:
  """Returns `training` without the seeds of weights, masks and clips."""
  tree = training(config)
  tree.pop('seed')
  tree['data'].pop('seed', None)
  return tree


def columns(config: Any) -> dict[str, str]:
  """Returns the columns of a run's row that identify what was trained.

  training_key: equal for two runs that train the same network to the bit.
  config_key: equal for two runs that differ in seeds alone.
  config: canonical JSON of `configuration`, to compare runs field by field.
  baseline: run id of the untrained baseline.
  """
  text = json.dumps(configuration(config), sort_keys=True,
                    separators=(',', ':'))
  return {'training_key': files.digest(config_lib.hashed(training(config))),
          'config_key': files.digest(
              config_lib.hashed(configuration(config))),
          'config': text, 'baseline': untrained_id(config)}
