"""What a sweep will cost and how far it is, as tables on the terminal."""

import time

from audiorank import files
from audiorank import lease
from audiorank import progress
from audiorank import records

# What training reaches of this machine's rate of large matrix products;
# measured for en32 to en768 on CPU cores it lies between 10 and 60 %.
EFFICIENCY = .25
# What a second of audio costs in the front end, in FLOPs of training: most of
# the work of the smallest models, nothing beside the large ones'.
FRONT_END = 2e7
RESULTS = ('rank', 'rank_low', 'rank_high', 'rank_center', 'score',
           'valid_loss')


def status(root):
  """Returns the state of every run of a sweep as text.

  Raises:
    FileNotFoundError: there is no sweep; names the folder.
  """
  import pandas as pd
  root = files.path(root, '--root')
  folders = records.sweep_folders(root)
  if not folders:
    raise FileNotFoundError(f'{root}: no runs: expected the --root of a sweep')
  shown, counts = [], {}
  for workdir in folders:
    state, told = records.state(workdir), lease.read(workdir)
    if state == 'started':
      state = 'running' if lease.alive(workdir) else 'interrupted'
    counts[state] = counts.get(state, 0) + 1
    config = records.config_tree(workdir)
    steps = config['train']['steps']
    at = steps if state == 'done' else told.get('step', 0)
    error = reason(workdir) if state == 'failed' else ''
    where = (f"{told['doing']} on {told['host']}, process {told['pid']}"
             if state == 'running' and told else error[:90])
    m = config['model']
    shown.append({
        'run': workdir.name, 'size': f"en{m['width']}-{m['depth']}",
        'hours': f"{config['data']['hours']:g}",
        'mask': f"{config['mask']['ratio']:g}", 'seed': config['seed'],
        'steps': f'{at}/{steps}' if steps else 'untrained', 'state': state,
        '': where})
  text = pd.DataFrame(shown).to_string(index=False)
  return f"{text}\n{', '.join(f'{n} {s}' for s, n in sorted(counts.items()))}"


def reason(workdir):
  """Returns why a run has failed; its FAILED may have been written by hand."""
  try:
    return str(records.read_json(workdir / 'FAILED')['error'])
  except (ValueError, KeyError, TypeError):
    return 'FAILED says no reason'


def retry(root):
  """Makes failed runs new again; returns their folders."""
  out = []
  for workdir in records.sweep_folders(root):
    if (workdir / 'FAILED').exists():
      (workdir / 'FAILED').unlink()
      out.append(workdir)
  return out


def machine_rate(seconds=.3):
  """Returns FLOP/s of large float32 matrix products on one device here."""
  import jax
  import jax.numpy as jnp
  x = jnp.ones((1024, 1024))
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  began, times = time.perf_counter(), 0
  while time.perf_counter() - began < seconds:
    product(x).block_until_ready()
    times += 1
  return times * 2 * 1024 ** 3 / (time.perf_counter() - began)


def plan(configs, workers):
  """Returns points, parameters, FLOPs and an estimate of the time, as text.

  Args:
    configs: {point: config}.
    workers: runs at once, which share the machine.
  """
  import jax
  import pandas as pd

  from audiorank import compute
  from audiorank import program
  shown, total, spent = [], 0., 0.
  rate = machine_rate() * EFFICIENCY
  for point, config in configs.items():
    shapes = jax.eval_shape(lambda key, c=config: program.init(c, key),
                            jax.random.key(0))
    flops = program.flops(config)
    clips = config.train.steps * config.train.batch
    total += flops['total'] * clips
    seconds = clips / rate * (
        flops['total'] + FRONT_END * config.data.crop_seconds)
    spent += seconds
    sizes = compute.sizes(shapes.params)
    shown.append({
        'point': point, **{part: f'{n:,}' for part, n in sizes.items()},
        'hours': f'{config.data.hours:g}' if config.data.hours else 'all',
        'steps': config.train.steps, 'batch': config.train.batch,
        'FLOPs': f"{flops['total'] * clips:.2e}",
        'of the encoder': f"{flops['encoder'] / flops['total']:.0%}",
        'audio seen': f'{clips * config.data.crop_seconds / 3600:.3g} h',
        'time': progress.clock(seconds)})
  text = pd.DataFrame(shown).to_string(index=False)
  return (f'{text}\n{len(configs)} points and their untrained networks, '
          f'{total:.2e} training FLOPs with the decoder; about '
          f'{progress.clock(spent)} of training on this device '
          f'({jax.devices()[0].device_kind}) at {EFFICIENCY:.0%} of its '
          f'measured {rate / EFFICIENCY / 1e9:.0f} GFLOP/s, '
          f'{workers} at once; reading, RankMe and scoring come on top')


def table(runs):
  """Returns the sweep's table as text; what a failed run lacks is blank."""
  import pandas as pd
  # Columns that no run has got as far as.
  runs = runs.reindex(columns=dict.fromkeys([*runs.columns, *RESULTS]))
  number = lambda name, form: [
      form.format(v) if pd.notna(v) else '–' for v in runs[name]]
  shown = pd.DataFrame({
      'run': runs['run_id'], 'what': runs['name'],
      'RankMe': [f'{value} [{low}, {high}]' if value != '–' else value
                 for value, low, high in zip(*(number(name, '{:.1f}')
                                               for name in RESULTS[:3]))],
      'centred': number('rank_center', '{:.1f}'),
      'score': number('score', '{:.3f}'),
      'valid loss': number('valid_loss', '{:.3f}'),
      'state': runs['state']})
  return shown.to_string(index=False)
