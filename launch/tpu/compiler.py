"""Compiles for TPUs on a machine without a TPU, and caches the answers.

  python -m launch.tpu.compiler

is a process that compiles. It reads jobs from standard input and writes answers
to standard output, each as one line of JSON. `answers` starts such processes
and writes their answers to

  <cache>/plans/<digest>.json    the answer for one program

The digest is of the program's spec, the topology, the effort, the versions of
jax and libtpu, and the sources of the program. AUDIORANK_CACHE moves the cache;
deleting it is safe.
"""

# A separate process, because the platform of jax must be set before anything
# else, and because the compiler may end the process on an error.

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
# Longest compilations first, so that parallel processes end at the same time.
ORDER = ('svd', 'pack', 'step', 'init', 'rankme', 'embed')
# Must be set before the process that compiles starts.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_LOG_DIR': 'disabled',
    # Print warnings on standard error, such as REMATERIALISED. Without the
    # second variable only fatal errors are printed.
    'TPU_MIN_LOG_LEVEL': '1', 'TPU_STDERR_LOG_LEVEL': '1'}
# The warning of the compiler if it has to gather a whole array on every device
# to divide it in another way.
REMATERIALISED = b'full rematerialization'
# Takes at most a third of the time of full effort, whose programs have up to a
# fifth less memory and traffic.
QUICK = {'exec_time_optimization_effort': -1.}
UNITS = {'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30, 'T': 2 ** 40}


def available() -> bool:
  """Returns whether the TPU compiler is installed."""
  return importlib.util.find_spec('libtpu') is not None


@functools.lru_cache(maxsize=1)
def ingredients() -> dict[str, str]:
  """Returns what an answer depends on besides its job: sources, versions."""
  digest = hashlib.sha256()
  for name in SOURCES:
    digest.update((ROOT / name).read_bytes())
  return {'sources': digest.hexdigest(),
          **{name: importlib.metadata.version(name)
             for name in ('jax', 'flax', 'optax', 'libtpu')}}


def path(job: dict[str, Any]) -> pathlib.Path:
  """Returns the path of a job's answer in the cache."""
  # Sources and versions are part of the key: a changed model is compiled anew.
  name = files.digest({**job, 'ingredients': ingredients()})
  return files.cache_folder('plans') / f'{name}.json'


def text(spec: dict[str, Any]) -> str:
  """Returns a spec as canonical text."""
  return json.dumps(spec, sort_keys=True)


class Compiler:
  """A process of this module, started with its first job."""

  def __init__(self) -> None:
    self.process: Any = None

  def ask(self, job: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a job, or an error if the process dies."""
    # A process serves many jobs: importing jax and libtpu takes seconds.
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
    # The next job gets a new process.
    code, self.process = self.process.wait(), None
    return {'error': f'the compiler ended with code {code}'}

  def close(self) -> None:
    """Kills the process."""
    if self.process:
      self.process.kill()
      self.process.wait()
      self.process.stdin.close()
      self.process.stdout.close()


def answers(specs: list[dict[str, Any]], piece: slices.Slice, effort: str,
            workers: int = 2) -> dict[str, dict[str, Any]]:
  """Returns {canonical text of a spec: answer}, compiling if not cached.

  Args:
    specs: from programs.spec; equal ones are compiled once.
    piece: the slice.
    effort: 'quick' or 'full'.
    workers: processes that compile at once.

  Raises:
    ValueError: the compiler refuses the topology or a program; one line.
  """
  # If libtpu is installed, this process must not load it: only one can.
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
  # A queue of compilers: each thread takes one that is free.
  idle: queue.SimpleQueue = queue.SimpleQueue()
  compilers = [Compiler() for _ in range(workers)]
  for compiler in compilers:
    idle.put(compiler)

  def one(name: str) -> tuple[str, dict[str, Any]]:
    compiler = idle.get()
    try:
      return name, compiler.ask(jobs[name])
    finally:
      idle.put(compiler)

  # Not in a `with`, which would wait for all jobs after an error.
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
  """Returns (bytes needed, bytes available) from an out-of-memory message."""
  # Such as 'Used 18.89G of 15.48G hbm': the larger number is needed.
  sizes = [float(n) * UNITS[u] for n, u in
           re.findall(r'([\d.]+)([KMGT])\b', message)]
  return max(sizes, default=0.), min(sizes, default=0.)


def compile_job(job: dict[str, Any], devices: list[Any]) -> dict[str, Any]:
  """Compiles one job; returns its memory, collectives and traffic.

  Args:
    job: {'spec', 'effort'}.
    devices: of the topology.
  """
  from launch.tpu import programs
  options = QUICK
  if job['effort'] == 'full':
    options = {}
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
      # A donated argument is an output as well, and counts once.
      'peak': (memory.argument_size_in_bytes + memory.output_size_in_bytes
               - memory.alias_size_in_bytes + memory.temp_size_in_bytes
               + memory.generated_code_size_in_bytes),
      'collectives': collectives, 'largest_gather': largest,
      'traffic': hlo.traffic(program), 'double': hlo.double(program)}


def main() -> None:
  """Answers the jobs on standard input."""
  # The C++ code of the compiler writes warnings to file descriptor 2, so that
  # is replaced and not only sys.stderr.
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
