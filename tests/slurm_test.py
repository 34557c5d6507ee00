"""The array script on a real Slurm: one machine, its own daemons and port."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from audiorank import checkpoint
from audiorank import records
from audiorank import synth
from audiorank.records import lock as lock_lib
from tests import processes

PROGRAMS = ('munged', 'mungekey', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')
PATH = f'{os.environ["PATH"]}:/usr/sbin:/sbin'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(p, path=PATH) for p in PROGRAMS)
        or os.geteuid() != 0, reason='no Slurm and munge, or not root')]

CONF = '''
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits until its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
'''


def free_ports(count):
  held = [socket.socket() for _ in range(count)]
  try:
    for s in held:
      s.bind(('localhost', 0))
    return [s.getsockname()[1] for s in held]
  finally:
    for s in held:
      s.close()


@pytest.fixture
def slurm(tmp_path):
  """The environment of a client; the daemons are ended afterwards."""
  folder = tmp_path / 'slurm'
  for name in ('state', 'spool'):
    (folder / name).mkdir(parents=True)
  host = socket.gethostname().split('.')[0]
  (folder / 'slurm.conf').write_text(CONF.format(
      host=host, folder=folder, ports=free_ports(2)))
  env = {**processes.environment(tmp_path / 'compiled'), 'PATH': PATH,
         'SLURM_CONF': str(folder / 'slurm.conf')}
  run = lambda *words: subprocess.run(words, env=env, check=True)
  run('mungekey', '--create', f'--keyfile={folder}/key')
  daemons = []
  try:
    for words in (
        ['munged', '--foreground', '--force', f'--key-file={folder}/key',
         f'--socket={folder}/munge.socket', f'--pid-file={folder}/munge.pid',
         f'--log-file={folder}/munge.log', f'--seed-file={folder}/seed'],
        ['slurmctld', '-D', '-i'], ['slurmd', '-D', '-N', host]):
      daemons.append(subprocess.Popen(
          words, env=env, stdout=subprocess.DEVNULL,
          stderr=subprocess.DEVNULL))
      time.sleep(1)
    end = time.monotonic() + 60
    while 'idle' not in told(env, 'sinfo', '-h', '-o', '%t'):
      assert time.monotonic() < end, logs(folder)
      time.sleep(.5)
    yield env
  finally:
    for daemon in reversed(daemons):
      daemon.terminate()
      daemon.wait(60)


def told(env, *words):
  return subprocess.run(words, env=env, capture_output=True,
                        text=True).stdout


def logs(folder):
  return '\n'.join(p.read_text()[-2000:] for p in folder.glob('*.log'))


def test_an_array_is_preempted_queued_again_and_done(
    slurm, corpus, tmp_path):
  synth.write_tasks(tmp_path, 0, clips_per_task=(24, 12, 12),
                    names=['timbre'], workers=1, progress=False)
  (tmp_path / 'two.py').write_text(f'''"""Two points."""
from tests import faults_test

def get_config(point='1e-3'):
  return faults_test.config(
      {str(corpus)!r}, {str(tmp_path / 'tasks')!r},
      {{'opt.lr': float(point), 'train.steps': 1000}})

def points():
  return ['1e-3', '2e-3']
''')
  command = lambda *words: subprocess.run(
      [sys.executable, '-m', *words], cwd=processes.ROOT, env=slurm,
      check=True, capture_output=True, text=True).stdout
  command('launch.sweep', 'write', f'--config={tmp_path}/two.py',
          f'--root={tmp_path}/runs')
  text = command('launch.emit', 'slurm', f'--root={tmp_path}/runs',
                 f'--python={sys.executable}', '--cores=1', '--hours=1')
  (tmp_path / 'job.sh').write_text(text)
  said = subprocess.run(['sbatch', tmp_path / 'job.sh'], cwd=tmp_path,
                        env=slurm, capture_output=True, text=True)
  assert said.returncode == 0, said.stderr
  job = re.search(r'\d+', said.stdout)[0]
  end = time.monotonic() + 1200
  hit = None
  while hit is None:
    assert time.monotonic() < end, told(slurm, 'squeue')
    for workdir in records.run_folders(tmp_path / 'runs'):
      if lock_lib.read(workdir).get('step', 0) > 100:
        hit = workdir, lock_lib.read(workdir)
    time.sleep(.05)
  order = re.search(r'runs=\((.*)\)', text)[1].split()
  subprocess.run(['scontrol', 'requeue', f'{job}_{order.index(hit[0].name)}'],
                 env=slurm, check=True)
  while processes.stat(hit[1]['pid']):
    assert time.monotonic() < end
    time.sleep(.1)
  saved = checkpoint.steps(hit[0] / 'checkpoints')[-1]
  assert records.state(hit[0]) != 'done' and saved >= hit[1]['step']
  while told(slurm, 'squeue', '-h'):
    assert time.monotonic() < end + 300, told(slurm, 'squeue')
    time.sleep(1)
  states = {records.state(w) for w in records.run_folders(tmp_path / 'runs')}
  outputs = '\n'.join(p.read_text() for p in tmp_path.glob('slurm-*.out'))
  assert states == {'done'}, outputs
  assert f'saved at step {saved}' in outputs
