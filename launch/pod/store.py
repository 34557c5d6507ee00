"""Answers of the compiler, asked once and kept.

  <cache>/plans/<digest>.json    one program's answer

AUDIORANK_CACHE moves the cache; deleting it is safe. An answer's name digests
the program's shape, the topology, the effort, the versions of jax and libtpu
and the sources that the program is made of.
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import queue
import subprocess
import sys

import jax

from audiorank import files
from audiorank import progress
from launch.pod import chips

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ('audiorank/audio.py', 'audiorank/embed.py', 'audiorank/masking.py',
           'audiorank/model.py', 'audiorank/objectives.py',
           'audiorank/program.py', 'audiorank/sharding.py',
           'audiorank/rankme/gram.py', 'audiorank/rankme/layout.py',
           'audiorank/rankme/spectrum.py',
           'launch/pod/chips.py', 'launch/pod/compiler.py',
           'launch/pod/hlo.py', 'launch/pod/programs.py',
           'launch/pod/traffic.py')
# The longest first, so that two processes end together.
ORDER = ('svd', 'pack', 'step', 'init', 'rankme', 'embed')


def folder():
  """Returns where plans are kept."""
  return files.cache_folder('plans')


def available():
  """Returns whether the TPU compiler is installed."""
  return importlib.util.find_spec('libtpu') is not None


@functools.lru_cache(maxsize=1)
def made_of():
  """Returns what an answer hangs on beside its job."""
  seen = hashlib.sha256()
  for name in SOURCES:
    seen.update((ROOT / name).read_bytes())
  return {'sources': seen.hexdigest(),
          **{name: importlib.metadata.version(name)
             for name in ('jax', 'flax', 'optax', 'libtpu')}}


def path(job):
  """Returns where a job's answer is kept."""
  return folder() / f'{files.digest({**job, "made_of": made_of()})}.json'


class Compiler:
  """A process of launch.pod.compiler, started with its first job."""

  def __init__(self):
    self.process = None

  def ask(self, job):
    """Returns the answer to a job; a process that dies has its say."""
    if self.process is None:
      self.process = subprocess.Popen(
          [sys.executable, '-m', 'launch.pod.compiler'], cwd=ROOT, text=True,
          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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

  def close(self):
    if self.process:
      self.process.kill()
      self.process.wait()
      self.process.stdin.close()
      self.process.stdout.close()


def answers(specs, piece, effort, workers=2):
  """Returns {canonical text of a spec: answer}, compiling what is not kept.

  Args:
    specs: of programs.spec; the same one twice costs nothing.
    piece: a chips.Slice.
    effort: 'quick' or 'full'.
    workers: processes that compile at once.

  Raises:
    ValueError: the compiler refuses the topology or a program; one line.
  """
  # libtpu, where it is installed, is for the compiler's process alone.
  jax.config.update('jax_platforms', 'cpu')
  described = chips.described(piece)
  jobs = {text(s): {'spec': s, 'described': described, 'effort': effort}
          for s in specs}
  out = {}
  for name, job in jobs.items():
    answer = files.read_cached(path(job), files.read_json)
    if answer is not None:
      out[name] = answer
  todo = sorted((n for n in jobs if n not in out),
                key=lambda n: ORDER.index(jobs[n]['spec']['program']))
  if not todo:
    return out
  bar = progress.Bar(len(todo), 0, f'compiling for {piece.name}', every=5.)
  workers = min(workers, len(todo))
  idle = queue.SimpleQueue()
  compilers = [Compiler() for _ in range(workers)]
  for c in compilers:
    idle.put(c)

  def one(name):
    compiler = idle.get()
    try:
      return name, compiler.ask(jobs[name])
    finally:
      idle.put(compiler)

  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    for done in concurrent.futures.as_completed(
        [pool.submit(one, n) for n in todo]):
      name, got = done.result()
      if 'error' in got:
        raise ValueError(f'{piece.name}, {jobs[name]["spec"]["program"]}: '
                         f'{got["error"]}')
      files.write_cached(path(jobs[name]), lambda part, got=got:
                         part.write_text(json.dumps(got)))
      out[name] = got
      bar.note(jobs[name]['spec']['program'])
      bar.step()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    for c in compilers:
      c.close()
    bar.close()
  return out


def text(spec):
  """Returns a spec as canonical text."""
  return json.dumps(spec, sort_keys=True)
