"""Asks the TPU compiler, on a machine without a TPU, and keeps its answers.

  python -m launch.tpu.compiler

is a process of its own that compiles: the platform is chosen once and before
anything else, and the compiler may end the process. It reads one JSON job a
line from standard input and answers each with one line of JSON on standard
output. `answers` starts such processes and keeps what they say in

  <cache>/plans/<digest>.json    one program's answer

whose name digests the program's shape, the topology, the effort, the versions
of jax and libtpu and the sources that the program is built from.
AUDIORANK_CACHE moves the cache; deleting it is safe.
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
import tempfile
from typing import Any

import jax

from audiorank import files
from audiorank import progress
from launch.tpu import hlo
from launch.tpu import slices

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ('audiorank/attention.py', 'audiorank/audio.py',
           'audiorank/embed.py', 'audiorank/model.py',
           'audiorank/objectives.py', 'audiorank/train_state.py',
           'audiorank/sharding.py', 'audiorank/rankme/gram.py',
           'audiorank/rankme/layout.py', 'audiorank/rankme/spectrum.py',
           'launch/tpu/slices.py', 'launch/tpu/compiler.py',
           'launch/tpu/hlo.py', 'launch/tpu/programs.py')
# The longest first, so that two processes end together.
ORDER = ('svd', 'pack', 'step', 'init', 'rankme', 'embed')
# Of the process that compiles, from its beginning.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_LOG_DIR': 'disabled',
    # Warnings, on standard error: what is rematerialised is one of them, and
    # without the second of these nothing below a failure is printed there.
    'TPU_MIN_LOG_LEVEL': '1', 'TPU_STDERR_LOG_LEVEL': '1'}
# What the compiler warns of where it can only gather a whole array on every
# device to cut it in another way.
REMATERIALISED = b'full rematerialization'
# A third of the compiler's time at most; the full effort's programs take up to
# a fifth less memory and traffic.
QUICK = {'exec_time_optimization_effort': -1.}
UNITS = {'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30, 'T': 2 ** 40}


def available() -> bool:
  """Returns whether the TPU compiler is installed."""
  return importlib.util.find_spec('libtpu') is not None


@functools.lru_cache(maxsize=1)
def ingredients() -> dict[str, str]:
  """Returns what an answer depends on beside its job: sources, versions."""
  digest = hashlib.sha256()
  for name in SOURCES:
    digest.update((ROOT / name).read_bytes())
  return {'sources': digest.hexdigest(),
          **{name: importlib.metadata.version(name)
             for name in ('jax', 'flax', 'optax', 'libtpu')}}


def path(job: dict[str, Any]) -> pathlib.Path:
  """Returns where a job's answer is kept."""
  name = files.digest({**job, 'ingredients': ingredients()})
  return files.cache_folder('plans') / f'{name}.json'


def text(spec: dict[str, Any]) -> str:
  """Returns a spec as canonical text."""
  return json.dumps(spec, sort_keys=True)


class Compiler:
  """A process of this module, started with its first job."""

  def __init__(self):
    self.process = None

  def ask(self, job: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a job; of a process that dies, its exit code."""
    if self.process is None:
      self.process = subprocess.Popen(
          [sys.executable, '-m', 'launch.tpu.compiler'], cwd=ROOT, text=True,
          env={**os.environ, **ENVIRONMENT}, stdin=subprocess.PIPE,
          stdout=subprocess.PIPE)
    try:
      self.process.stdin.write(json.dumps(job) + '\n')
      self.process.stdin.flush()
      line = self.process.stdout.readline()
    except BrokenPipeError:
      line = ''
    if line:
      return json.loads(line)
    code, self.process = self.process.wait(), None
    return {'error': f'the compiler ended with code {code}'}

  def close(self) -> None:
    if self.process:
      self.process.kill()
      self.process.wait()
      self.process.stdin.close()
      self.process.stdout.close()


def answers(specs: list[dict[str, Any]], piece: slices.Slice, effort: str,
            workers: int = 2) -> dict[str, dict[str, Any]]:
  """Returns {canonical text of a spec: answer}, compiling what is not kept.

  Args:
    specs: of programs.spec; the same one twice costs nothing.
    piece: the slice.
    effort: 'quick' or 'full'.
    workers: processes that compile at once.

  Raises:
    ValueError: the compiler refuses the topology or a program; one line.
  """
  # libtpu, where it is installed, is for the compiler's process alone.
  jax.config.update('jax_platforms', 'cpu')
  description = slices.description(piece)
  jobs = {text(s): {'spec': s, 'described': description, 'effort': effort}
          for s in specs}
  known = {name: files.read_json(path(job)) for name, job in jobs.items()
           if path(job).is_file()}
  todo = sorted((name for name in jobs if name not in known),
                key=lambda name: ORDER.index(jobs[name]['spec']['program']))
  if not todo:
    return known
  bar = progress.Bar(len(todo), 0, f'compiling for {piece.name}', every=5.)
  workers = min(workers, len(todo))
  idle = queue.SimpleQueue()
  compilers = [Compiler() for _ in range(workers)]
  for compiler in compilers:
    idle.put(compiler)

  def one(name):
    compiler = idle.get()
    try:
      return name, compiler.ask(jobs[name])
    finally:
      idle.put(compiler)

  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    for future in concurrent.futures.as_completed(
        [pool.submit(one, name) for name in todo]):
      name, known[name] = future.result()
      program = jobs[name]['spec']['program']
      if 'error' in known[name]:
        raise ValueError(f'{piece.name}, {program}: {known[name]["error"]}')
      files.write_json(path(jobs[name]), known[name])
      bar.note(program)
      bar.step()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    for compiler in compilers:
      compiler.close()
    bar.close()
  return known


def shortage(message: str) -> tuple[float, float]:
  """Returns (bytes needed, bytes there are) of an out-of-memory message."""
  sizes = [float(n) * UNITS[u] for n, u in
           re.findall(r'([\d.]+)([KMGT])\b', message)]
  return max(sizes, default=0.), min(sizes, default=0.)


def compile_job(job: dict[str, Any], devices: list[Any]) -> dict[str, Any]:
  """Compiles one job; returns what is to be known of the program.

  Args:
    job: {'spec', 'effort'}.
    devices: of the topology.
  """
  from launch.tpu import programs
  options = {} if job['effort'] == 'full' else QUICK
  try:
    compiled = programs.lowered(job['spec'], devices).compile(options)
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if 'RESOURCE_EXHAUSTED' not in message:
      return {'error': message.splitlines()[0][:300]}
    needed, memory = shortage(message.splitlines()[0])
    return {'fits': False, 'needed': needed, 'memory': memory}
  memory, program = compiled.memory_analysis(), compiled.as_text()
  collectives, largest = {}, 0
  for c in hlo.collectives(program):
    kind = collectives.setdefault(c.kind, {'runs': 0, 'bytes': 0., 'wire': 0.})
    kind['runs'] += c.times
    kind['bytes'] += c.times * c.bytes
    kind['wire'] += hlo.wire(c)
    if c.kind == 'all-gather':
      largest = max(largest, c.bytes)
  return {
      'fits': True, 'arguments': memory.argument_size_in_bytes,
      'temporaries': memory.temp_size_in_bytes,
      'peak': (memory.argument_size_in_bytes + memory.output_size_in_bytes
               - memory.alias_size_in_bytes + memory.temp_size_in_bytes
               + memory.generated_code_size_in_bytes),
      'collectives': collectives, 'largest_gather': largest,
      'traffic': hlo.traffic(program), 'double': hlo.double(program)}


def main():
  # What C++ prints goes to the same place as Python's standard error.
  log = tempfile.TemporaryFile()
  stderr = os.dup(2)
  os.dup2(log.fileno(), 2)
  from jax.experimental import topologies
  devices = {}
  for line in sys.stdin:
    job = json.loads(line)
    log.seek(0)
    log.truncate()
    try:
      name = json.dumps(job['described'])
      if name not in devices:
        devices[name] = topologies.get_topology_desc(
            **job['described']).devices
      answer = compile_job(job, devices[name])
    except Exception as error:
      first = (str(error).splitlines() or [''])[0][:300]
      answer = {'error': f'{type(error).__name__}: {first}'}
    log.seek(0)
    answer['rematerialised'] = REMATERIALISED in log.read()
    print(json.dumps(answer), flush=True)
  os.dup2(stderr, 2)


if __name__ == '__main__':
  main()
