"""A process of its own that compiles for TPUs on a machine without one.

  python -m launch.pod.compiler

Reads one JSON job a line from standard input and answers each with one line
of JSON on standard output. A process apart, because the platform is chosen
once and before anything else, and because the compiler may end it.
"""

import json
import os
import re
import sys
import tempfile

ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_LOG_DIR': 'disabled',
    # Warnings, on standard error: what is rematerialised is one of them, and
    # without the second of these nothing below a failure is said there.
    'TPU_MIN_LOG_LEVEL': '1', 'TPU_STDERR_LOG_LEVEL': '1'}
# What the compiler warns of where it can only gather a whole array on every
# device to cut it in another way.
REMATERIALISED = b'full rematerialization'
# A third of the compiler's time at most; the full effort's programs take up to
# a fifth less memory and traffic.
QUICK = {'exec_time_optimization_effort': -1.}
UNITS = {'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30, 'T': 2 ** 40}


def short(message):
  """Returns (bytes needed, bytes there are) of an out-of-memory message."""
  sizes = [float(n) * UNITS[u] for n, u in
           re.findall(r'([\d.]+)([KMGT])\b', message)]
  return max(sizes, default=0.), min(sizes, default=0.)


def answer(job, devices):
  """Compiles one job; returns what is to be known of the program.

  Args:
    job: {'spec', 'effort'}.
    devices: of the topology.
  """
  import jax

  from launch.pod import hlo
  from launch.pod import programs
  from launch.pod import traffic
  try:
    compiled = programs.lowered(job['spec'], devices).compile(
        {} if job['effort'] == 'full' else QUICK)
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if 'RESOURCE_EXHAUSTED' not in message:
      return {'error': message.splitlines()[0][:300]}
    needed, there = short(message.splitlines()[0])
    return {'fits': False, 'needed': needed, 'memory': there}
  m, text = compiled.memory_analysis(), compiled.as_text()
  moved = {}
  largest = 0
  for c in hlo.collectives(text):
    at = moved.setdefault(c.kind, {'runs': 0, 'bytes': 0., 'wire': 0.})
    at['runs'] += c.times
    at['bytes'] += c.times * c.bytes
    at['wire'] += hlo.wire(c)
    if c.kind == 'all-gather':
      largest = max(largest, c.bytes)
  return {
      'fits': True, 'arguments': m.argument_size_in_bytes,
      'temporaries': m.temp_size_in_bytes,
      'peak': (m.argument_size_in_bytes + m.output_size_in_bytes
               - m.alias_size_in_bytes + m.temp_size_in_bytes
               + m.generated_code_size_in_bytes),
      'collectives': moved, 'largest_gather': largest,
      'traffic': traffic.moved(text), 'double': hlo.double(text)}


def main():
  os.environ.update(ENVIRONMENT)
  # What C++ says goes to the same place as Python's standard error.
  said = tempfile.TemporaryFile()
  real = os.dup(2)
  os.dup2(said.fileno(), 2)
  from jax.experimental import topologies
  known = {}
  for line in sys.stdin:
    job = json.loads(line)
    said.seek(0)
    said.truncate()
    try:
      name = json.dumps(job['described'])
      if name not in known:
        known[name] = topologies.get_topology_desc(**job['described']).devices
      out = answer(job, known[name])
    except Exception as error:
      out = {'error': f'{type(error).__name__}: '
                      f'{(str(error).splitlines() or [""])[0][:300]}'}
    said.seek(0)
    out['rematerialised'] = REMATERIALISED in said.read()
    print(json.dumps(out), flush=True)
  os.dup2(real, 2)


if __name__ == '__main__':
  main()
