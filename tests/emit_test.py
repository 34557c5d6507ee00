"""Text for schedulers: what the schema and the shell say of it."""

import os
import pathlib
import subprocess
import sys

import pytest
import yaml

from audiorank import records
from configs import base
from launch import emit
from launch.tpu import compiler
from launch.tpu import layouts
from launch.tpu import slices

RUNS = ['0123456789ab', 'ba9876543210']
POD = emit.Pod('sweep', 'gs://bucket/sweeps/one', 'gcr.io/p/audiorank:1',
               'tpu-queue', 'v5e', '4x4', 3, 2, 'cpus', 'trainer', True)
CLUSTER = emit.Cluster('sweep', '/data/sweeps/one', '/opt/venv/bin/python',
                       '/opt/audiorank', 'gpu', 1, 8, 24)


LARGE = {RUNS[1]: layouts.Layout(4, 'dots', 256)}


def read(*args):
  return list(yaml.safe_load_all(emit.jobsets(*args)))


def pods(tree):
  """Returns {name: (job, pod spec, container)} of a JobSet."""
  out = {}
  for job in tree['spec']['replicatedJobs']:
    spec = job['template']['spec']['template']['spec']
    (container,) = spec['containers']
    out[job['name']] = job['template']['spec'], spec, container
  return out


@pytest.mark.parametrize('name, text', [
    ('jobset.yaml', emit.jobsets(RUNS[:1], POD, LARGE)),
    ('slurm.sh', emit.slurm(RUNS, CLUSTER))], ids=['jobset', 'slurm'])
def test_what_is_printed_is_what_was_looked_at(name, text):
  """A change of tests/goldens is a change of what clusters are told."""
  assert text == (pathlib.Path(__file__).parent / 'goldens' / name).read_text()


def test_a_sweep_is_one_jobset_of_workers_that_pull_and_scorers_after_them():
  (tree,) = read(RUNS, POD)
  assert tree['metadata']['name'] == 'sweep'
  jobs = pods(tree)
  job, spec, container = jobs['worker']
  assert tree['spec']['replicatedJobs'][0]['replicas'] == 3
  assert job['parallelism'] == job['completions'] == 4
  assert container['command'] == [
      'python', '-m', 'launch.worker', f'--root={POD.root}', '--roles=train']
  env = {e['name']: e['value'] for e in container['env']}
  # On its own, though the slice has four hosts.
  assert env['TPU_PROCESS_BOUNDS'] == '1,1,1'
  assert 'AUDIORANK_DISTRIBUTED' not in env
  assert env['AUDIORANK_CACHE'] == f'{POD.root}/cache'
  assert container['resources']['limits']['google.com/tpu'] == 4
  # One that is lost is replaced alone; a mistake ends all.
  assert job['backoffLimit'] == emit.RESTARTS
  ignore, fatal = job['podFailurePolicy']['rules']
  assert ignore['onPodConditions'][0]['type'] == 'DisruptionTarget'
  fatal = fatal['onExitCodes']['values']
  assert 1 in fatal and emit.AGAIN not in fatal and 137 not in fatal
  assert spec['serviceAccountName'] == 'trainer'
  assert spec['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert tree['spec']['ttlSecondsAfterFinished'] == emit.KEPT
  job, spec, container = jobs['scorer']
  assert job['parallelism'] == 2
  assert container['command'][-1] == '--roles=score'
  # A pool of CPU machines is what its owner made it: spot or not.
  assert spec['nodeSelector'] == {'cloud.google.com/gke-nodepool': 'cpus'}
  assert 'google.com/tpu' not in str(container)
  assert tree['spec']['replicatedJobs'][1]['dependsOn'] == [
      {'name': 'worker', 'status': 'Complete'}]
  (tree,) = read(RUNS, POD._replace(scorers=0))
  assert list(pods(tree)) == ['worker']
  assert pods(tree)['worker'][2]['command'][-1] == '--roles=train,score'


def test_a_run_larger_than_a_host_has_a_slice_of_its_own():
  shared, own = read(RUNS[:1], POD, LARGE)
  assert pods(shared)['worker'][2]['command'][-2] == (
      f'--runs={POD.root}/{emit.RUNS}')
  assert own['metadata']['name'] == f'sweep-{RUNS[1]}'
  job, _, container = pods(own)['slice']
  assert job['parallelism'] == 4
  assert job['backoffLimit'] == 0  # A lost host restarts all of them.
  assert own['spec']['failurePolicy']['maxRestarts'] == emit.RESTARTS
  assert container['command'] == [
      'python', '-m', 'launch.train', f'--workdir={POD.root}/{RUNS[1]}',
      '--mesh=4x4', '--remat=dots', '--noscore']
  # A machine without TPUs scores it when the slice has been given back.
  job, spec, scorer = pods(own)['score']
  assert own['spec']['replicatedJobs'][1]['dependsOn'] == [
      {'name': 'slice', 'status': 'Complete'}]
  assert job['parallelism'] == 1 and 'google.com/tpu' not in str(spec)
  assert scorer['command'] == [
      'python', '-m', 'launch.train', f'--workdir={POD.root}/{RUNS[1]}']
  alone = read(RUNS[:1], POD._replace(scorers=0), LARGE)[1]
  assert list(pods(alone)) == ['slice']
  assert '--noscore' not in pods(alone)['slice'][2]['command']
  assert {'name': 'AUDIORANK_DISTRIBUTED', 'value': '1'} in container['env']
  annotations = own['spec']['replicatedJobs'][0]['template']['metadata'][
      'annotations']
  assert annotations == {'alpha.jobset.sigs.k8s.io/exclusive-topology':
                         'cloud.google.com/gke-nodepool'}


def test_what_a_host_can_hold_is_told_by_its_memory(tmp_path):
  for point in ('en128-12', 'en1536-40'):
    records.open_run(tmp_path / point, base.get_config(point))
  folders = sorted(tmp_path.iterdir())
  # 17 GB of parameters and moments, over the fewest chips that hold them.
  assert emit.own_slices(folders, slices.parse('v5e:4x4')) == {
      'en1536-40': layouts.Layout(2, 'dots', 256)}
  with pytest.raises(ValueError, match='en1536-40: v5e:1x1 does not hold it'):
    emit.own_slices(folders[1:], slices.parse('v5e:1x1'))


def strict(node):
  """Refuses fields that a schema does not have, in place."""
  if isinstance(node, dict):
    if 'properties' in node and 'additionalProperties' not in node:
      node['additionalProperties'] = False
    for name, part in node.items():
      # The outer metadata is any object's; Kubernetes checks it elsewhere.
      if not (name == 'metadata' and part == {'type': 'object'}):
        strict(part)
  elif isinstance(node, list):
    for part in node:
      strict(part)


MOUNTS = (emit.Mount('gs://corpora', '/corpora'), emit.Mount('nfs', '/data'))


def test_a_jobset_follows_the_schema(shared):
  jsonschema = pytest.importorskip('jsonschema')
  crd = yaml.safe_load(
      (shared / 'fixtures/launch/jobset_crd.yaml').read_text())
  (version,) = [v for v in crd['spec']['versions'] if v['name'] == 'v1alpha2']
  schema = version['schema']['openAPIV3Schema']
  strict(schema)
  for pod in (POD, POD._replace(mounts=MOUNTS, root='/data/s', topology='2x2',
                                corpus='/corpora/one', queue='')):
    for tree in read(RUNS[:1], pod, LARGE):
      jsonschema.validate(tree, schema)
  tree['spec']['failurePolicy']['maxRestart'] = 1
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(tree, schema)


def test_every_folder_is_on_a_bucket_or_mounted():
  pod = POD._replace(mounts=MOUNTS, root='/data/s', corpus='/corpora/one')
  for tree in read(RUNS[:1], pod, LARGE):
    for _, spec, container in pods(tree).values():
      places = {v['name']: v['mountPath'] for v in container['volumeMounts']}
      assert {v['name'] for v in spec['volumes']} == set(places)
      words = [*container['command'][3:], *(e['value'] for e in container['env']
                                           if e['name'] == 'AUDIORANK_CACHE')]
      folders = [w.rpartition('=')[2] for w in words if '/' in w]
      assert folders and all(emit.below(f, list(places.values()))
                             for f in folders)
      sources = [set(v) - {'name'} for v in spec['volumes']]
      assert sources == [{'csi'}, {'persistentVolumeClaim'}]
  assert tree['spec']['replicatedJobs'][0]['template']['spec']['template'][
      'metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}


@pytest.mark.parametrize('change, word', [
    ({'root': '/data/s'}, 'no pod would see it'),
    ({'root': '/corpora/s', 'mounts': MOUNTS}, 'no pod would see it'),
    ({'root': '/database', 'mounts': MOUNTS}, 'no pod would see it'),
    ({'corpus': '/elsewhere'}, 'corpus /elsewhere: no pod')])
def test_a_folder_that_no_pod_sees_is_refused(change, word):
  with pytest.raises(ValueError, match=word):
    emit.jobsets(RUNS, POD._replace(**change))


@pytest.mark.parametrize('text', ['gs://b', 'b:c', '/a:/b', 'gs://b/x:/c'])
def test_a_mount_that_is_none(text):
  with pytest.raises(ValueError, match=f'--mounts={text}'):
    emit.parse_mount(text)


def test_names_of_pods_are_short_enough():
  assert emit.parse_mount('gs://bk:/data/') == ('gs://bk', '/data')
  # The webhook's own count: job, index, pod and the five letters.
  longest = 'n' * (63 - len('-worker-2-3') - 6)
  emit.jobsets(RUNS, POD._replace(name=longest))
  with pytest.raises(ValueError, match='64 characters.*shorter by 1'):
    emit.jobsets(RUNS, POD._replace(name=f'{longest}n'))
  longest = 'n' * (63 - len(f'-{RUNS[0]}-slice-0-3') - 6)
  emit.jobsets([], POD._replace(name=longest), LARGE)
  with pytest.raises(ValueError, match='shorter by 1'):
    emit.jobsets([], POD._replace(name=f'{longest}n'), LARGE)


@pytest.mark.parametrize('partition', ['gpu_a100', 'A100', 'a,b', 'x-1.y'])
def test_partitions_of_slurm(partition):
  text = emit.slurm(RUNS, CLUSTER._replace(partition=partition, at_once=7))
  assert f'--partition={partition}\n' in text and '--array=0-1%7\n' in text
  with pytest.raises(ValueError, match='partition'):
    emit.slurm(RUNS, CLUSTER._replace(partition=f'{partition};'))


def test_the_script_is_a_script(tmp_path):
  (tmp_path / 'x.sh').write_text(emit.slurm(RUNS, CLUSTER))
  done = subprocess.run(['bash', '-n', tmp_path / 'x.sh'],
                        capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize('code, requeued', [
    (0, False), (1, False), (3, False), (42, True), (137, True)])
def test_a_slurm_task_is_requeued_when_the_worker_says_so(
    tmp_path, code, requeued):
  """The script itself, with a worker and an scontrol that are stand-ins."""
  worker = tmp_path / 'python'
  worker.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/said\nexit {code}\n')
  control = tmp_path / 'scontrol'
  control.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n')
  for file in (worker, control):
    file.chmod(0o755)
  script = tmp_path / 'job.sh'
  script.write_text(emit.slurm(RUNS, CLUSTER._replace(
      python=str(worker), folder=str(tmp_path), root='/data/x')))
  done = subprocess.run(['bash', script], env={
      'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_ARRAY_JOB_ID': '7',
      'SLURM_ARRAY_TASK_ID': '1'})
  assert done.returncode == code
  assert pathlib.Path(tmp_path / 'said').read_text().split() == [
      '-m', 'launch.train', f'--workdir=/data/x/{RUNS[1]}']
  assert (tmp_path / 'requeued').exists() == requeued
  if requeued:
    assert (tmp_path / 'requeued').read_text() == 'requeue 7_1\n'


@pytest.mark.parametrize('change, field', [
    ({'name': 'x; rm -rf /'}, 'name'), ({'root': '/a/$(id)'}, 'root'),
    ({'service_account': '-'}, 'service_account'),
    ({'queue': 'Q'}, 'queue'), ({'image': 'a b'}, 'image'),
    ({'machine': 'v9'}, 'topology'), ({'topology': '4x'}, 'topology')])
def test_names_that_could_mean_more_are_refused(change, field):
  with pytest.raises(ValueError, match=field):
    emit.jobsets(RUNS, POD._replace(**change))
  with pytest.raises(ValueError, match='hexadecimal'):
    emit.jobsets(['$(id)'], POD)


def test_a_runs_mesh_is_in_its_manifest(tmp_path):
  config = base.get_config('en128-12')
  folder = tmp_path / records.run_id(config)
  records.open_run(folder, config)
  run = folder.name
  placed = layouts.placements([folder], POD.machine, POD.topology, '4x4')
  assert placed == {run: layouts.Layout(4, 'dots', 256)}
  assert layouts.placements([folder], POD.machine, POD.topology, '') == {}
  placed = {run: placed[run]._replace(remat='full')}
  (tree,) = read([], POD, placed)
  job = tree['spec']['replicatedJobs'][0]['template']['spec']
  (container,) = job['template']['spec']['containers']
  assert container['command'][3:] == [
      f'--workdir={POD.root}/{run}', '--mesh=4x4', '--remat=full',
      '--noscore']
  assert tree['metadata']['annotations'] == {
      'audiorank/mesh': '4x4', 'audiorank/clips-a-chip': '16'}


@pytest.mark.parametrize('mesh, batch, want', [
    ('3x4', 256, 'product of 16'), ('4by4', 256, 'expected auto'),
    ('16x1', 100, 'train.batch 100 is not a multiple of 16 chips')])
def test_a_mesh_that_does_not_divide_is_refused(tmp_path, mesh, batch, want):
  config = base.get_config('en128-12')
  config.train.batch = batch
  folder = tmp_path / records.run_id(config)
  records.open_run(folder, config)
  with pytest.raises(ValueError, match=want):
    layouts.placements([folder], POD.machine, POD.topology, mesh)


def test_auto_takes_the_fastest_that_fits(tmp_path, monkeypatch):
  config = base.get_config('en128-12')
  folder = tmp_path / records.run_id(config)
  records.open_run(folder, config)

  def answers(specs, piece, effort):
    # One device's kernels do not fit; the more that share them, the slower.
    return {compiler.text(s): {
        'fits': s['fsdp'] > 1, 'needed': 1e12, 'peak': 1e9,
        'traffic': 1e9 * s['fsdp'], 'collectives': {}} for s in specs}

  monkeypatch.setattr(compiler, 'available', lambda: True)
  monkeypatch.setattr(compiler, 'answers', answers)
  assert layouts.placements([folder], POD.machine, POD.topology, 'auto') == {
      folder.name: layouts.Layout(4, 'dots', 256)}
  monkeypatch.setattr(compiler, 'available', lambda: False)
  with pytest.raises(ValueError, match='TPU compiler'):
    layouts.placements([folder], POD.machine, POD.topology, 'auto')


def test_a_worker_takes_its_mesh_from_its_command(tmp_path):
  config = base.get_config('en128-12')
  records.open_run(tmp_path, config)
  said = subprocess.run(
      [sys.executable, '-c', 'from launch import train; from audiorank import '
       'records; import sys\n'
       'c = train.laid_out(records.load_config(sys.argv[1]), "4x4", "full")\n'
       'print(c.mesh.data, c.mesh.fsdp, c.model.remat, records.run_id(c))',
       str(tmp_path)], capture_output=True, text=True, check=True,
      cwd=pathlib.Path(__file__).parents[1]).stdout.split()
  # Another mesh is no other run.
  assert said == ['4', '4', 'full', records.run_id(config)]


def test_hosts_of_a_slice():
  assert emit.hosts_of(slices.parse('v5e:16x16')) == 64
  assert emit.hosts_of(slices.parse('v4:2x2x1')) == 1
