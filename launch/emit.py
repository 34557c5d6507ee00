"""A sweep's runs -> text for somebody else's scheduler. Nothing is started.

  python -m launch.sweep write --config=FILE --root=gs://BUCKET/SWEEP
  python -m launch.emit jobset --root=gs://BUCKET/SWEEP --image=IMAGE --topology=4x4
  python -m launch.emit slurm --root=DIR --partition=gpu --gpus=1

  jobset   GKE: one JobSet a sweep. Every host of its TPU slices is a worker
           that claims runs until none is left; a pool of CPU machines then
           scores them. A run that one host cannot hold gets a JobSet and a
           slice of its own, on which all hosts train it together; a CPU
           machine then scores it
  slurm    one array job, a run a task, requeued when it is preempted

No value of a config reaches a shell or a manifest: a run is named by its id,
and names that users give are checked and quoted.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import re
import shlex
import sys
from typing import Any
from typing import NamedTuple

from absl import flags
import yaml

from audiorank import files
from launch import cli
from launch import work
from launch.tpu import layouts
from launch.tpu import slices

_ROOT = flags.DEFINE_string(
    'root', None, 'Folder of the sweep, as this machine sees it.')
_SEEN = flags.DEFINE_string(
    'seen_as', None, 'The same folder as the hosts see it, where it differs.')
_NAME = flags.DEFINE_string('name', 'audiorank', 'Of the jobs.')
_IMAGE = flags.DEFINE_string('image', '', 'Container, for jobset: see '
                             'launch/Dockerfile.')
_QUEUE = flags.DEFINE_string('queue', '', "Kueue's LocalQueue, for jobset; '' "
                             'for none.')
_MACHINE = flags.DEFINE_string('machine', 'v5e', 'v4, v5e, v5p or v6e.')
_TOPOLOGY = flags.DEFINE_string('topology', '4x4', 'Of a slice.')
_SLICES = flags.DEFINE_integer('slices', 1, 'For jobset: slices of workers.',
                               lower_bound=1)
_SCORERS = flags.DEFINE_integer(
    'scorers', 1, 'For jobset: CPU pods that score what was trained; 0 has the '
    'workers score.', lower_bound=0)
_SCORE_POOL = flags.DEFINE_string(
    'score_pool', '', "For jobset: node pool of the scorers; '' is any.")
_ACCOUNT = flags.DEFINE_string(
    'service_account', '', 'For jobset: of Kubernetes, that may read and write '
    'the bucket.')
_SPOT = flags.DEFINE_boolean('spot', False, 'For jobset: TPU hosts are spot machines.')
_MOUNTS = flags.DEFINE_list(
    'mounts', [], 'For jobset: gs://BUCKET:/path, by gcsfuse and to be read, '
    'or CLAIM:/path of a PersistentVolumeClaim.')
_MESH = flags.DEFINE_string(
    'mesh', '', "Of a slice that trains one run: each run's own, 'auto' for "
    'the fastest that fits by the TPU compiler, or such as 64x4 (data x fsdp). '
    'Gives every run a slice of its own.')
_PYTHON = flags.DEFINE_string('python', sys.executable,
                              'Interpreter, for slurm.')
_FOLDER = flags.DEFINE_string('folder', '.', 'The repository, for slurm.')
_PARTITION = flags.DEFINE_string('partition', 'main', 'For slurm: one, or '
                                 'several with commas.')
_GPUS = flags.DEFINE_integer('gpus', 0, 'Of a task, for slurm.', lower_bound=0)
_CORES = flags.DEFINE_integer('cores', 4, 'Of a task, for slurm.',
                              lower_bound=1)
_HOURS = flags.DEFINE_integer('hours', 24, 'Of a task, for slurm.',
                              lower_bound=1)
_AT_ONCE = flags.DEFINE_integer('at_once', 100, 'Tasks at a time, for slurm.',
                                lower_bound=1)

HOST = 4  # Chips of a host that is one of several.
AGAIN = 42  # The worker's "run me again"; so is every death by a signal.
RESTARTS = 10_000  # Preemptions are not failures.
KEPT = 24 * 3600  # Seconds after which a JobSet that has ended is deleted.
GRACE = 120  # Seconds to save in; GKE gives spot machines fewer.
RUNS = 'hosts.runs'  # In a sweep's folder: the runs that one host can hold.
# A DNS label (RFC 1035), as Kubernetes expects.
NAME = re.compile(r'[a-z]([-a-z0-9]*[a-z0-9])?')
PARTITION = re.compile(r'[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*')
PATH = re.compile(r'[A-Za-z0-9_./:@%+=,-]+')
RUN = re.compile(r'[0-9a-f]{12}')
POD = 63  # Characters that the name of a pod may have.
SUFFIX = 6  # Of them, what Kubernetes appends: a dash and five letters.

Tree = dict[str, Any]


class Mount(NamedTuple):
  """A volume that pods see as a folder."""
  source: str  # gs://BUCKET, or the name of a PersistentVolumeClaim.
  path: str


class Pod(NamedTuple):
  """Where runs go on GKE."""
  name: str  # Of the JobSets, DNS-1123.
  root: str  # The sweep's folder as the hosts see it.
  image: str  # Container with audiorank in its working directory.
  queue: str  # Kueue's LocalQueue, or ''.
  machine: str  # One of flops.TPUS.
  topology: str  # Such as 4x4 or 2x2x4.
  slices: int = 1  # Of workers.
  scorers: int = 1  # CPU pods that score; 0: the workers do.
  score_pool: str = ''
  service_account: str = ''
  spot: bool = False
  mounts: tuple[Mount, ...] = ()
  corpus: str = ''
  tasks: str = ''


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
  at_once: int = 100


# --- Checks ---


def check(runs: Sequence[str], **fields: str) -> None:
  """Raises ValueError for a name that could mean more than itself."""
  forms = {'name': NAME, 'queue': NAME, 'score_pool': NAME,
           'service_account': NAME, 'partition': PARTITION}
  # Everything that enters a shell script or YAML has one of a few forms, so
  # nothing in it can be a command.
  for run in runs:
    if not RUN.fullmatch(run):
      raise ValueError(f'run {run!r}: expected 12 hexadecimal digits')
  for field, value in fields.items():
    form = forms.get(field, PATH)
    if not form.fullmatch(value):
      raise ValueError(f'{field} {value!r}: expected {form.pattern}')


def check_pod(runs: Sequence[str], pod: Pod) -> None:
  """Raises ValueError for what GKE would refuse, or what no pod would see."""
  check(runs, name=pod.name, root=pod.root, image=pod.image)
  optional = {field: getattr(pod, field) for field in (
      'queue', 'score_pool', 'service_account', 'corpus', 'tasks')}
  check((), **{field: value for field, value in optional.items() if value})
  for mount in pod.mounts:
    check((), mounts=mount.source, path=mount.path)
  # A bucket that is mounted has no locks: a root is there by gs:// alone.
  shared = [m.path for m in pod.mounts if not files.is_on_bucket(m.source)]
  if not files.is_on_bucket(pod.root) and not below(pod.root, shared):
    raise ValueError(
        f'root {pod.root}: no pod would see it: expected gs://BUCKET/SWEEP, or '
        'a folder below a claim of --mounts')
  every = [m.path for m in pod.mounts]
  for field in ('corpus', 'tasks'):
    place = optional[field]
    if place and not files.is_on_bucket(place) and not below(place, every):
      raise ValueError(f'{field} {place}: no pod would see it: expected gs://, '
                       'or a folder below one of --mounts')


def below(folder: str, parents: Sequence[str]) -> bool:
  """Returns whether a folder is one of some others, or lies in one."""
  return any(f'{folder}/'.startswith(f'{parent.rstrip("/")}/')
             for parent in parents)


def parse_mount(text: str) -> Mount:
  """Returns the Mount of SOURCE:/path.

  Raises:
    ValueError: another form.
  """
  # From the right, as gs:// has a colon of its own.
  source, _, path = text.rpartition(':')
  if not re.fullmatch(r'/[^:/][^:]*', path) or not re.fullmatch(
      r'gs://[a-z0-9][a-z0-9._-]+|[a-z0-9][a-z0-9.-]*', source):
    raise ValueError(f'--mounts={text}: expected gs://BUCKET:/path or '
                     'CLAIM:/path')
  return Mount(source, path.rstrip('/'))


def check_lengths(jobset: Tree) -> None:
  """Raises ValueError for a JobSet whose pods would have too long a name."""
  name = jobset['metadata']['name']
  for job in jobset['spec']['replicatedJobs']:
    pods = job['template']['spec']['parallelism']
    # JobSet names pods JOBSET-JOB-REPLICA-POD.
    longest = len(f'{name}-{job["name"]}-{job["replicas"] - 1}-{pods - 1}')
    if longest + SUFFIX > POD:
      raise ValueError(
          f'name {name!r}: its pods would have names of {longest + SUFFIX} '
          f'characters: expected at most {POD}, so a --name shorter by '
          f'{longest + SUFFIX - POD}')


# --- GKE ---


def hosts_of(piece: slices.Slice) -> int:
  """Returns how many hosts a slice has."""
  return max(1, piece.chips // HOST)


def jobsets(runs: Sequence[str], pod: Pod,
            large: Mapping[str, layouts.Layout] | None = None) -> str:
  """Returns JobSets (jobset.x-k8s.io/v1alpha2) as YAML.

  Args:
    runs: names of runs that one host can hold: they share a JobSet.
    pod: where they go.
    large: {run: Layout} of the others: each has a JobSet.

  Raises:
    ValueError: a name or a place that the cluster could not take.
  """
  large = large or {}
  check_pod([*runs, *large], pod)
  out = [sweep_jobset(pod, bool(large))] if runs else []
  out += [run_jobset(run, pod, layout) for run, layout in large.items()]
  for tree in out:
    check_lengths(tree)
  return yaml.safe_dump_all(out, sort_keys=False)


def sweep_jobset(pod: Pod, listed: bool) -> Tree:
  """Returns the JobSet of a sweep: workers, and scorers after them.

  A worker that exits 42 or dies is started again alone: it is on its own, even
  on a slice of several hosts.

  Args:
    pod: where it goes.
    listed: whether workers are to do the runs of the file RUNS alone.
  """
  piece = slices.parse(f'{pod.machine}:{pod.topology}')
  hosts = hosts_of(piece)
  root = [f'--root={pod.root}', *moved(pod)]
  if listed:
    root.append(f'--runs={pod.root}/{RUNS}')
  roles = 'train' if pod.scorers else 'train,score'
  env = {}
  if hosts > 1:
    # Without these, jax on a host of a slice waits for the others.
    env = {'TPU_PROCESS_BOUNDS': '1,1,1',
           'TPU_CHIPS_PER_PROCESS_BOUNDS': '2,2,1',
           'TPU_VISIBLE_CHIPS': '0,1,2,3', 'TPU_SKIP_MDS_QUERY': '1',
           'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}
  jobs = [replicated(
      'worker', pod.slices, hosts,
      tpu_pod(pod, piece, ['worker', *root, f'--roles={roles}'], env), hosts,
      RESTARTS)]
  if pod.scorers:
    # Scorers wait: idle CPU pods would cost as much as working ones.
    jobs.append(after('worker', replicated(
        'scorer', 1, pod.scorers,
        cpu_pod(pod, ['worker', *root, '--roles=score']), 1, RESTARTS)))
  return named(pod.name, pod, jobs, {})


def run_jobset(run: str, pod: Pod, layout: layouts.Layout) -> Tree:
  """Returns the JobSet of one run: all hosts of a slice, and a scorer after.

  Where one host is lost, all are started again and resume from the last save.
  """
  piece = slices.parse(f'{pod.machine}:{pod.topology}')
  hosts = hosts_of(piece)
  scoring = ['train', f'--workdir={pod.root}/{run}', *moved(pod)]
  command = [*scoring, *layout.flags(piece.chips)]
  if pod.scorers:
    command.append('--noscore')  # The slice does not wait for the probes.
  notes = {'audiorank/mesh': layout.mesh(piece.chips),
           'audiorank/clips-a-chip': str(layout.batch // piece.chips)}
  env = {'AUDIORANK_DISTRIBUTED': '1'} if hosts > 1 else {}
  jobs = [replicated('slice', 1, hosts, tpu_pod(pod, piece, command, env), hosts,
                     0)]
  if pod.scorers:
    jobs.append(after('slice', replicated(
        'score', 1, 1, cpu_pod(pod, scoring), 1, RESTARTS)))
  return named(f'{pod.name}-{run}', pod, jobs, notes)


def after(first: str, job: Tree) -> Tree:
  """Returns a replicated job that starts when another is complete."""
  return {**job, 'dependsOn': [{'name': first, 'status': 'Complete'}]}


def moved(pod: Pod) -> list[str]:
  """Returns the flags that say where corpus and tasks are on the hosts."""
  return [f'--{field}={getattr(pod, field)}' for field in ('corpus', 'tasks')
          if getattr(pod, field)]


def named(name: str, pod: Pod, jobs: list[Tree], notes: dict[str, str]) -> Tree:
  """Returns a JobSet of some replicated jobs."""
  metadata: Tree = {'name': name}
  if pod.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': pod.queue}
  if notes:
    metadata['annotations'] = notes
  return {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet',
      'metadata': metadata, 'spec': {
          'ttlSecondsAfterFinished': KEPT,
          # A mistake fails all at once: every other pod would repeat it.
          'failurePolicy': {
              'maxRestarts': RESTARTS,
              'rules': [{'name': 'mistake', 'action': 'FailJobSet',
                         'onJobFailureReasons': ['PodFailurePolicy']}]},
          'replicatedJobs': jobs}}


def replicated(name: str, replicas: int, pods: int, template: Tree, hosts: int,
               restarts: int) -> Tree:
  """Returns one replicated job of a JobSet.

  Args:
    name: of the job.
    replicas: of it; of TPUs, a slice each.
    pods: of a replica.
    template: of a pod.
    hosts: of the slice that a replica has.
    restarts: of single pods; 0 has all restarted where one is lost.
  """
  metadata = {}
  if hosts > 1:
    # One slice a replica: its pods share no node pool with another's.
    metadata = {'metadata': {'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology':
            'cloud.google.com/gke-nodepool'}}}
  # 42, and deaths by a signal, are no mistakes; nor is a machine that is taken
  # away, whatever its pod says.
  rules = [{'action': 'FailJob', 'onExitCodes': {
      'containerName': 'main', 'operator': 'In',
      'values': list(range(1, AGAIN))}}]
  if restarts:
    # First: the first rule that matches decides.
    rules.insert(0, {'action': 'Ignore', 'onPodConditions': [
        {'type': 'DisruptionTarget', 'status': 'True'}]})
  return {'name': name, 'replicas': replicas, 'template': {**metadata, 'spec': {
      # Indexed: each pod has a number, and with it a name that others reach.
      'parallelism': pods, 'completions': pods, 'backoffLimit': restarts,
      'completionMode': 'Indexed', 'podFailurePolicy': {'rules': rules},
      'template': template}}}


def tpu_pod(pod: Pod, piece: slices.Slice, command: list[str],
            env: dict[str, str]) -> Tree:
  """Returns the template of a pod on a host of a TPU slice."""
  hosts = hosts_of(piece)
  nodes = {'cloud.google.com/gke-tpu-accelerator': piece.chip.gke,
           'cloud.google.com/gke-tpu-topology': pod.topology}
  tolerations = []
  if pod.spot:
    nodes['cloud.google.com/gke-spot'] = 'true'
    # Spot machines accept only pods that tolerate them.
    tolerations = [{'key': 'cloud.google.com/gke-spot', 'operator': 'Equal',
                    'value': 'true', 'effect': 'NoSchedule'}]
  template = pod_template(
      pod, command, env, {'limits': {'google.com/tpu': piece.chips // hosts}},
      nodes)
  if tolerations:
    template['spec']['tolerations'] = tolerations
  return template


def cpu_pod(pod: Pod, command: list[str]) -> Tree:
  """Returns the template of a pod that scores on CPUs."""
  pool = {}
  if pod.score_pool:
    pool = {'cloud.google.com/gke-nodepool': pod.score_pool}
  return pod_template(pod, command, {'JAX_PLATFORMS': 'cpu'},
                      {'requests': {'cpu': '4', 'memory': '16Gi'}}, pool)


def pod_template(pod: Pod, command: list[str], env: dict[str, str],
                 resources: Tree, nodes: dict[str, str]) -> Tree:
  """Returns the template of a pod: one container, its volumes, its nodes."""
  # What is compiled outlives the pod.
  env = {'AUDIORANK_CACHE': f'{pod.root.rstrip("/")}/cache', **env}
  container = {
      'name': 'main', 'image': pod.image,
      'command': ['python', '-m', f'launch.{command[0]}', *command[1:]],
      'env': [{'name': key, 'value': value} for key, value in env.items()],
      'resources': resources}
  # A podFailurePolicy requires Never; the Job starts pods again itself.
  spec: Tree = {'restartPolicy': 'Never',
                'terminationGracePeriodSeconds': GRACE,
                'containers': [container]}
  if nodes:
    spec['nodeSelector'] = nodes
  if pod.service_account:
    spec['serviceAccountName'] = pod.service_account
  if pod.mounts:
    container['volumeMounts'] = [
        {'name': f'volume-{i}', 'mountPath': mount.path}
        for i, mount in enumerate(pod.mounts)]
    spec['volumes'] = [{'name': f'volume-{i}', **volume(mount)}
                       for i, mount in enumerate(pod.mounts)]
  template: Tree = {'spec': spec}
  if any(files.is_on_bucket(mount.source) for mount in pod.mounts):
    # gcsfuse runs in a container beside, which this annotation requests.
    template['metadata'] = {'annotations': {'gke-gcsfuse/volumes': 'true'}}
  return template


def volume(mount: Mount) -> Tree:
  """Returns the source of a volume."""
  if not files.is_on_bucket(mount.source):
    return {'persistentVolumeClaim': {'claimName': mount.source}}
  # implicit-dirs: gcsfuse would otherwise show only folders that have an
  # object of their own.
  return {'csi': {'driver': 'gcsfuse.csi.storage.gke.io', 'readOnly': True,
                  'volumeAttributes': {
                      'bucketName': mount.source.removeprefix('gs://'),
                      'mountOptions': 'implicit-dirs'}}}


def fits(config: Any, chip_memory: float, chips: int, fsdp: int) -> bool:
  """Returns whether some chips can hold a run, parameters over fsdp of them."""
  from launch import grid
  # The state is divided over fsdp devices, the clips over all.
  need = (grid.state_bytes(config) / fsdp
          + config.train.batch / chips * grid.clip_bytes(config))
  # A tenth for what the estimate does not know.
  return need < .9 * chip_memory


def own_slices(folders: Sequence[pathlib.Path], piece: slices.Slice
               ) -> dict[str, layouts.Layout]:
  """Returns {run: Layout} of the runs that one host cannot hold.

  Raises:
    ValueError: a run that the slice cannot hold either; names it.
  """
  from audiorank import records
  # Chips of one host.
  host, out = piece.chips // hosts_of(piece), {}
  for folder in folders:
    config = records.load_config(folder)
    memory, fsdp = piece.chip.memory, config.mesh.fsdp
    if fsdp <= host and fits(config, memory, host, fsdp):
      continue
    # Doubled until the share of each device fits.
    while not fits(config, memory, piece.chips, fsdp):
      fsdp *= 2
      if piece.chips % fsdp:
        raise ValueError(f'{folder}: {piece.name} does not hold it: expected a '
                         'larger --topology, or --mesh=auto')
    out[folder.name] = layouts.own(config)._replace(fsdp=fsdp)
  return out


# --- Slurm ---


def slurm(runs: Sequence[str], cluster: Cluster) -> str:
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
#SBATCH --array=0-{len(runs) - 1}%{c.at_once}
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


ENGINES = ('jobset', 'slurm')


def emit_jobsets(folders: Sequence[pathlib.Path], root: str) -> str:
  """Returns the JobSets of a sweep's runs by the flags."""
  pod = Pod(_NAME.value, root, _IMAGE.value, _QUEUE.value, _MACHINE.value,
            _TOPOLOGY.value, _SLICES.value, _SCORERS.value, _SCORE_POOL.value,
            _ACCOUNT.value, _SPOT.value,
            tuple(map(parse_mount, _MOUNTS.value)), *work.places().values())
  piece = slices.parse(f'{pod.machine}:{pod.topology}')
  placed = layouts.placements(list(folders), pod.machine, pod.topology,
                              _MESH.value) or own_slices(folders, piece)
  # Runs with a slice of their own are not offered to the workers of the sweep.
  runs = [f.name for f in folders if f.name not in placed]
  text = jobsets(runs, pod, placed)
  if runs and placed:
    files.write_text(files.path(_ROOT.value) / RUNS, '\n'.join(runs))
  return text


def main(argv: list[str]) -> None:
  """Prints what a scheduler takes."""
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
  # A run that is done needs no job.
  states = files.mapped(records.state, folders, folders[0])
  folders = [f for f, state in zip(folders, states) if state != 'done']
  if not folders:
    raise ValueError(f'{_ROOT.value}: every run is done')
  root = _SEEN.value or files.absolute(_ROOT.value, '--root')
  if argv[1] == 'jobset':
    print(emit_jobsets(folders, root), end='')
    return
  where = Cluster(_NAME.value, root, _PYTHON.value,
                  os.path.abspath(_FOLDER.value), _PARTITION.value,
                  _GPUS.value, _CORES.value, _HOURS.value, _AT_ONCE.value)
  print(slurm([f.name for f in folders], where), end='')


if __name__ == '__main__':
  cli.run(main, words=True)
