"""A sweep's runs -> text for somebody else's scheduler. Nothing is started.

  python -m launch.sweep write --config=FILE --root=DIR
  python -m launch.emit jobset --root=DIR --image=IMAGE --topology=4x4
  python -m launch.emit slurm --root=DIR --partition=gpu --gpus=1

Every engine runs the one worker command, `python -m launch.train
--workdir=<root>/<run_id>`, on every host of a run, until the run is done. No
value of a config reaches a shell or a manifest: a run is named by its id, and
names that users give are checked and quoted.

  jobset   GKE: one JobSet a run, queued by Kueue
  slurm    one array job, requeued when it is preempted
"""

import os
import re
import shlex
from typing import NamedTuple

from absl import flags
import yaml

from launch import cli
from launch.tpu import layouts
from launch.tpu import slices

_ROOT = flags.DEFINE_string('root', None, 'Folder of the sweep, from here.')
_SEEN = flags.DEFINE_string(
    'seen_as', None, 'The same folder as the hosts see it, where it differs.')
_NAME = flags.DEFINE_string('name', 'audiorank', 'Of the jobs.')
_IMAGE = flags.DEFINE_string('image', '', 'Container, for jobset.')
_QUEUE = flags.DEFINE_string('queue', 'default', "Kueue's LocalQueue.")
_MACHINE = flags.DEFINE_string('machine', 'v5e', 'v4, v5e, v5p or v6e.')
_TOPOLOGY = flags.DEFINE_string('topology', '4x4', 'Of a slice.')
_MESH = flags.DEFINE_string(
    'mesh', '', "Of a TPU slice: each run's own, 'auto' for the fastest that "
    'fits by the TPU compiler, or such as 64x4 (data x fsdp).')
_PYTHON = flags.DEFINE_string('python', 'python3', 'Interpreter, for slurm.')
_FOLDER = flags.DEFINE_string('folder', '.', 'The repository, for slurm.')
_PARTITION = flags.DEFINE_string('partition', 'main', 'For slurm.')
_GPUS = flags.DEFINE_integer('gpus', 0, 'Of a task, for slurm.')
_CORES = flags.DEFINE_integer('cores', 4, 'Of a task, for slurm.')
_HOURS = flags.DEFINE_integer('hours', 24, 'Of a task, for slurm.')

HOST = 4  # Chips of a host that is one of several.
AGAIN = 42  # The worker's "run me again"; so is every death by a signal.
RESTARTS = 10_000  # Preemptions are not failures.
NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
PATH = re.compile(r'[A-Za-z0-9_./:@%+=,-]+')
RUN = re.compile(r'[0-9a-f]{12}')


class Pod(NamedTuple):
  """Where runs go on GKE."""
  name: str  # DNS-1123, at most 40 characters.
  root: str  # The sweep's folder as the hosts see it.
  image: str  # Container with audiorank in its working directory.
  queue: str  # Kueue's LocalQueue.
  machine: str  # One of flops.TPUS.
  topology: str  # Such as 4x4 or 2x2x4.


class Cluster(NamedTuple):
  """Where runs go under Slurm."""
  name: str
  root: str
  python: str  # The interpreter.
  folder: str  # The repository's folder.
  partition: str
  gpus: int
  cores: int
  hours: int


def check(runs, **fields):
  """Raises ValueError for a name that could mean more than itself."""
  for run in runs:
    if not RUN.fullmatch(run):
      raise ValueError(f'run {run!r}: expected 12 hexadecimal digits')
  for field, value in fields.items():
    want = NAME if field in ('name', 'queue', 'partition') else PATH
    if not want.fullmatch(value):
      raise ValueError(f'{field} {value!r}: expected {want.pattern}')
    if field == 'root' and '://' in value:
      raise ValueError(f'root {value!r}: expected a folder that every host '
                       'sees, with locks: a file server, no bucket')


def hosts_of(piece: slices.Slice) -> int:
  """Returns how many hosts a slice has."""
  return max(1, piece.chips // HOST)


def jobset(runs, pod, placed=None):
  """Returns one JobSet (jobset.x-k8s.io/v1alpha2) a run, as YAML.

  A worker that exits 42 or dies by a signal is started again with the whole
  slice; any other exit fails the JobSet at once.

  Args:
    runs: names of runs.
    pod: where they go.
    placed: {run: Layout} of those that do not lie as their configs say.
  """
  placed = placed or {}
  check(runs, name=pod.name, queue=pod.queue, root=pod.root, image=pod.image)
  piece = slices.parse(f'{pod.machine}:{pod.topology}')
  hosts = hosts_of(piece)
  container = {
      'name': 'train', 'image': pod.image,
      'env': [{'name': 'AUDIORANK_DISTRIBUTED',
               'value': '1' if hosts > 1 else ''}],
      'resources': {'limits': {'google.com/tpu': piece.chips // hosts}}}
  out = []
  for run in runs:
    layout = placed.get(run)
    command = ['python', '-m', 'launch.train', f'--workdir={pod.root}/{run}',
               *(layout.flags(piece.chips) if layout else [])]
    notes = {}
    if layout:
      clips = layout.batch // piece.chips
      notes['annotations'] = {'audiorank/mesh': layout.mesh(piece.chips),
                              'audiorank/clips-a-chip': str(clips)}
    job = {
        'parallelism': hosts, 'completions': hosts, 'backoffLimit': 0,
        'completionMode': 'Indexed',
        'podFailurePolicy': {'rules': [{
            'action': 'FailJob',
            'onExitCodes': {'containerName': 'train', 'operator': 'In',
                            'values': list(range(1, 42))}}]},
        'template': {'spec': {
            'restartPolicy': 'Never', 'terminationGracePeriodSeconds': 120,
            'nodeSelector': {
                'cloud.google.com/gke-tpu-accelerator': piece.chip.gke,
                'cloud.google.com/gke-tpu-topology': pod.topology},
            'containers': [{**container, 'command': command}]}}}
    out.append({
        'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet',
        'metadata': {'name': f'{pod.name}-{run}',
                     'labels': {'kueue.x-k8s.io/queue-name': pod.queue},
                     **notes},
        'spec': {
            'failurePolicy': {
                'maxRestarts': RESTARTS,
                'rules': [{'name': 'mistake', 'action': 'FailJobSet',
                           'onJobFailureReasons': ['PodFailurePolicy']}]},
            'replicatedJobs': [{'name': 'slice', 'replicas': 1,
                                'template': {'spec': job}}]}})
  return yaml.safe_dump_all(out, sort_keys=False)


def slurm(runs, cluster):
  """Returns an sbatch script: an array, one run a task.

  Slurm signals a task two minutes before its time is up; the worker saves and
  exits 42, and the task is queued again, as after a preemption.
  """
  c = cluster
  check(runs, name=c.name, partition=c.partition, root=c.root,
        python=c.python, folder=c.folder)
  gpus = f'#SBATCH --gres=gpu:{c.gpus}\n' if c.gpus else ''
  q = shlex.quote
  return f'''#!/bin/bash
#SBATCH --job-name={c.name}
#SBATCH --partition={c.partition}
#SBATCH --array=0-{len(runs) - 1}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={c.cores}
{gpus}#SBATCH --time={c.hours}:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -u
cd {q(c.folder)} || exit 1
runs=({' '.join(runs)})
{q(c.python)} -m launch.train --workdir={q(c.root)}/"${{runs[$SLURM_ARRAY_TASK_ID]}}" &
worker=$!
trap 'kill -TERM "$worker"' TERM
wait "$worker"; code=$?
# A trapped signal ends the first wait; the second has the worker's own code.
if kill -0 "$worker" 2>/dev/null; then wait "$worker"; code=$?; fi
if [ "$code" -eq {AGAIN} ] || [ "$code" -ge 128 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
'''


ENGINES = {'jobset': jobset, 'slurm': slurm}


def main(argv):
  if len(argv) != 2 or argv[1] not in ENGINES:
    raise ValueError(f'{" ".join(argv[1:])!r}: expected one of '
                     f'{", ".join(ENGINES)}')
  if _ROOT.value is None:
    raise ValueError('--root=DIR: expected the folder of a sweep')
  from audiorank import records
  folders = records.sweep_folders(_ROOT.value)
  if not folders:
    raise FileNotFoundError(f'{_ROOT.value}: no runs: write them with '
                            'python -m launch.sweep write')
  folders = [f for f in folders if records.state(f) != 'done']
  runs = [f.name for f in folders]
  if not runs:
    raise ValueError(f'{_ROOT.value}: every run is done')
  root = _SEEN.value or os.path.abspath(_ROOT.value)
  if argv[1] == 'slurm':
    where = Cluster(_NAME.value, root, _PYTHON.value,
                    os.path.abspath(_FOLDER.value), _PARTITION.value,
                    _GPUS.value, _CORES.value, _HOURS.value)
    print(slurm(runs, where), end='')
  else:
    where = Pod(_NAME.value, root, _IMAGE.value, _QUEUE.value, _MACHINE.value,
                _TOPOLOGY.value)
    placed = layouts.placements(folders, where.machine, where.topology,
                             _MESH.value)
    print(ENGINES[argv[1]](runs, where, placed), end='')


if __name__ == '__main__':
  cli.run(main, words=True)
