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
  tpu-vm   gcloud and ssh, for v2 to v6e only: Google has frozen that API
"""

import math
import os
import re
import shlex
from typing import NamedTuple

from absl import flags
import yaml

from launch import cli
from launch.pod import layouts

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
_ZONE = flags.DEFINE_string('zone', 'us-central2-b', 'For tpu-vm.')
_PYTHON = flags.DEFINE_string('python', 'python3', 'Interpreter, for slurm.')
_FOLDER = flags.DEFINE_string('folder', '.', 'The repository, for slurm.')
_PARTITION = flags.DEFINE_string('partition', 'main', 'For slurm.')
_GPUS = flags.DEFINE_integer('gpus', 0, 'Of a task, for slurm.')
_CORES = flags.DEFINE_integer('cores', 4, 'Of a task, for slurm.')
_HOURS = flags.DEFINE_integer('hours', 24, 'Of a task, for slurm.')

# Google's names of the machines, and chips of a host that is one of several.
MACHINES = {'v4': ('tpu-v4-podslice', 4), 'v5e': ('tpu-v5-lite-podslice', 4),
            'v5p': ('tpu-v5p-slice', 4), 'v6e': ('tpu-v6e-slice', 4)}
# Cores, not chips, count in the names of v4 and v5p.
CORES = {'v4': 2, 'v5p': 2, 'v5e': 1, 'v6e': 1}
LEGACY = {'v4': 'v4', 'v5p': 'v5p', 'v5e': 'v5litepod', 'v6e': 'v6e'}
AGAIN = 42  # The worker's "run me again"; so is every death by a signal.
RESTARTS = 10_000  # Preemptions are not failures.
NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
PATH = re.compile(r'[A-Za-z0-9_./:@%+=,-]+')
RUN = re.compile(r'[0-9a-f]{12}')


class Pod(NamedTuple):
  """Where runs go on GKE or on TPU VMs."""
  name: str  # DNS-1123, at most 40 characters.
  root: str  # The sweep's folder as the hosts see it.
  image: str  # Container with audiorank in its working directory.
  queue: str  # Kueue's LocalQueue.
  machine: str  # A key of MACHINES.
  topology: str  # Such as 4x4 or 2x2x4.
  zone: str  # Of a TPU VM.


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
    want = NAME if field in ('name', 'queue', 'partition', 'zone') else PATH
    if not want.fullmatch(value):
      raise ValueError(f'{field} {value!r}: expected {want.pattern}')
    if field == 'root' and '://' in value:
      raise ValueError(f'root {value!r}: expected a folder that every host '
                       'sees, with locks: a file server, no bucket')


def chips(machine, topology):
  """Returns (chips, hosts) of a slice.

  Raises:
    ValueError: no such machine or topology.
  """
  if machine not in MACHINES:
    raise ValueError(f'machine {machine!r}: expected {", ".join(MACHINES)}')
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', topology):
    raise ValueError(f'topology {topology!r}: expected such as 4x4 or 2x2x4')
  total = math.prod(int(n) for n in topology.split('x'))
  return total, max(1, total // MACHINES[machine][1])


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
  total, hosts = chips(pod.machine, pod.topology)
  container = {
      'name': 'train', 'image': pod.image,
      'env': [{'name': 'AUDIORANK_DISTRIBUTED',
               'value': '1' if hosts > 1 else ''}],
      'resources': {'limits': {'google.com/tpu': total // hosts}}}
  out = []
  for run in runs:
    layout = placed.get(run)
    command = ['python', '-m', 'launch.train', f'--workdir={pod.root}/{run}',
               *(layout.flags if layout else [])]
    notes = {'annotations': {
        'audiorank/mesh': layout.mesh,
        'audiorank/clips-a-chip': str(layout.clips)}} if layout else {}
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
                'cloud.google.com/gke-tpu-accelerator':
                    MACHINES[pod.machine][0],
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


def tpu_vm(runs, pod, placed=None):
  """Returns a shell script: one queued TPU VM, the runs one after the other.

  Legacy: Google develops the Cloud TPU API no further and TPU7x is not in it;
  it serves those who have v2 to v6e, such as the TPU Research Cloud.

  Args:
    runs, pod, placed: as in `jobset`.
  """
  check(runs, name=pod.name, zone=pod.zone, root=pod.root)
  total, hosts = chips(pod.machine, pod.topology)
  accelerator = f'{LEGACY[pod.machine]}-{total * CORES[pod.machine]}'
  q, several = shlex.quote, 'AUDIORANK_DISTRIBUTED=1 ' if hosts > 1 else ''
  where = f'{q(pod.name)} --zone={q(pod.zone)}'
  said = {r: ' '.join(['', *x.flags]) for r, x in (placed or {}).items()}
  lines = [f"again '{several}python3 -m launch.train --workdir={pod.root}/{r}"
           f"{said[r] if r in said else ''}'" for r in runs]
  return f'''#!/bin/bash
# Legacy: the Cloud TPU API is frozen; use jobset where you can.
set -u
ssh="gcloud compute tpus tpu-vm ssh {where} --worker=all"
create() {{
  gcloud compute tpus queued-resources create {q(pod.name)} \\
    --node-id={q(pod.name)} --zone={q(pod.zone)} \\
    --accelerator-type={accelerator} --runtime-version=tpu-ubuntu2204-base \\
    --spot
}}
# A preempted TPU VM has to be deleted and queued for anew.
again() {{
  until $ssh --command="cd audiorank && $1"; do
    code=$?
    if [ "$code" -ge 1 ] && [ "$code" -le 41 ]; then return "$code"; fi
    state=$(gcloud compute tpus tpu-vm describe {where} --format='value(state)')
    if [ "$state" != READY ]; then
      gcloud compute tpus queued-resources delete {where} --force --quiet
      create
    fi
    sleep 60
  done
}}
create
{chr(10).join(lines)}
'''


ENGINES = {'jobset': jobset, 'slurm': slurm, 'tpu-vm': tpu_vm}


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
                _TOPOLOGY.value, _ZONE.value)
    placed = layouts.placed(folders, where.machine, where.topology,
                             _MESH.value)
    print(ENGINES[argv[1]](runs, where, placed), end='')


if __name__ == '__main__':
  cli.run(main, words=True)
