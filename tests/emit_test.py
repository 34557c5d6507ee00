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
POD = emit.Pod('sweep', '/data/sweeps/one', 'gcr.io/p/audiorank:1',
               'tpu-queue', 'v5e', '4x4')
CLUSTER = emit.Cluster('sweep', '/data/sweeps/one', '/opt/venv/bin/python',
                       '/opt/audiorank', 'gpu', 1, 8, 24)


@pytest.mark.parametrize('name, text', [
    ('jobset.yaml', emit.jobset(RUNS, POD)),
    ('slurm.sh', emit.slurm(RUNS, CLUSTER))], ids=['jobset', 'slurm'])
def test_what_is_printed_is_what_was_looked_at(name, text):
  """A change of tests/goldens is a change of what clusters are told."""
  assert text == (pathlib.Path(__file__).parent / 'goldens' / name).read_text()


def test_a_jobset_has_a_host_a_pod_and_restarts_what_was_preempted():
  first, second = yaml.safe_load_all(emit.jobset(RUNS, POD))
  assert first['metadata']['name'] == 'sweep-0123456789ab'
  assert second['metadata']['name'] == 'sweep-ba9876543210'
  job = first['spec']['replicatedJobs'][0]['template']['spec']
  assert job['parallelism'] == job['completions'] == 4
  (container,) = job['template']['spec']['containers']
  assert container['command'][-1] == (
      '--workdir=/data/sweeps/one/0123456789ab')
  assert container['resources']['limits']['google.com/tpu'] == 4
  assert container['env'][0]['value'] == '1'
  fatal = job['podFailurePolicy']['rules'][0]['onExitCodes']['values']
  assert 1 in fatal and emit.AGAIN not in fatal and 137 not in fatal


def test_a_jobset_follows_the_schema(shared):
  jsonschema = pytest.importorskip('jsonschema')
  crd = yaml.safe_load(
      (shared / 'fixtures/launch/jobset_crd.yaml').read_text())
  (version,) = [v for v in crd['spec']['versions'] if v['name'] == 'v1alpha2']
  schema = version['schema']['openAPIV3Schema']

  def strict(node):
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

  strict(schema)
  for tree in yaml.safe_load_all(emit.jobset(RUNS, POD)):
    jsonschema.validate(tree, schema)
  tree['spec']['failurePolicy']['maxRestart'] = 1
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(tree, schema)


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
    ({'root': 'gs://bucket/one'}, 'root'),
    ({'queue': 'Q'}, 'queue'), ({'image': 'a b'}, 'image'),
    ({'machine': 'v9'}, 'topology'), ({'topology': '4x'}, 'topology')])
def test_names_that_could_mean_more_are_refused(change, field):
  with pytest.raises(ValueError, match=field):
    emit.jobset(RUNS, POD._replace(**change))
  with pytest.raises(ValueError, match='hexadecimal'):
    emit.jobset(['$(id)'], POD)


def test_a_runs_mesh_is_in_its_manifest(tmp_path):
  config = base.get_config('en128-12')
  folder = tmp_path / records.run_id(config)
  records.open_run(folder, config)
  run = folder.name
  placed = layouts.placements([folder], POD.machine, POD.topology, '4x4')
  assert placed == {run: layouts.Layout(4, 'dots', 256)}
  assert layouts.placements([folder], POD.machine, POD.topology, '') == {}
  placed = {run: placed[run]._replace(remat='full')}
  (tree,) = yaml.safe_load_all(emit.jobset([run], POD, placed))
  job = tree['spec']['replicatedJobs'][0]['template']['spec']
  (container,) = job['template']['spec']['containers']
  assert container['command'][3:] == [
      f'--workdir={POD.root}/{run}', '--mesh=4x4', '--remat=full']
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
