"""Installing into Colab adds what we name and upgrades nothing.

colab.json holds the versions of what we need on Colab's CPU, GPU and TPU
machines (its published package lists of August 2026).
"""

import ast
import importlib.metadata
import json
import pathlib
import re

from packaging import requirements
from packaging import version
import pytest

HERE = pathlib.Path(__file__).parent
KINDS = ('cpu', 'gpu', 'tpu')
LISTS = {'cpu': 'colab-freeze.txt', 'gpu': 'colab-freeze.gpu.txt',
         'tpu': 'colab-freeze.tpu.txt'}
ADDED = {'ml-collections'}  # All that pip may bring.


def canonical(name):
  return re.sub(r'[-_.]+', '-', name).lower()


def ours():
  """Returns the requirements of setup.py."""
  tree = ast.parse((HERE.parent / 'setup.py').read_text())
  found, = (k.value for node in ast.walk(tree) if isinstance(node, ast.Call)
            for k in node.keywords if k.arg == 'install_requires')
  return [requirements.Requirement(r) for r in ast.literal_eval(found)]


def brought(have, wanted):
  """Returns what pip would install beside `have` for the requirements.

  What is there stays where its version is allowed; what is not is followed
  to its own requirements, on Linux and without extras.
  """
  out, todo = {}, list(wanted)
  while todo:
    r = todo.pop()
    name = canonical(r.name)
    if r.marker and not r.marker.evaluate({'extra': ''}):
      continue
    if name in have and r.specifier.contains(have[name], prereleases=True):
      continue
    if name in out:
      continue
    out[name] = have.get(name, '')
    todo += [requirements.Requirement(text) for text in
             importlib.metadata.requires(name) or []]
  return out


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_upgraded_and_only_the_named_is_added(kind):
  have = json.loads((HERE / 'colab.json').read_text())[kind]
  assert set(brought(have, ours())) == ADDED


@pytest.mark.parametrize('kind', KINDS)
def test_against_the_whole_list(kind, shared):
  path = shared / 'fixtures' / 'launch' / LISTS[kind]
  have = {canonical(found[1]): found[2] for line in
          path.read_text().splitlines()
          if (found := re.match(r'([\w.-]+)==(\S+)', line))}
  assert len(have) > 200
  assert set(brought(have, ours())) == ADDED
  # The recorded part is the list's.
  part = json.loads((HERE / 'colab.json').read_text())[kind]
  assert part == {name: have[name] for name in part}


def test_an_upgrade_would_be_seen():
  have = json.loads((HERE / 'colab.json').read_text())['cpu']
  newer = requirements.Requirement('jax>=0.8')
  assert 'jax' in brought(have, [newer])


def test_the_floor_is_colab_and_is_what_we_ask_for():
  lines = (HERE.parent / '.ci' / 'floor.txt').read_text().splitlines()
  floor = dict(line.split('==') for line in lines if '==' in line)
  have = json.loads((HERE / 'colab.json').read_text())['cpu']
  for name, at in floor.items():
    assert have.get(canonical(name), at) == at
  for r in ours():
    lowest = [s.version for s in r.specifier if s.operator == '>=']
    assert not any(s.operator in ('<', '<=', '==', '~=') for s in r.specifier)
    if lowest:
      found = version.Version(floor[r.name])
      assert found >= version.Version(lowest[0])
      # No promise that is not tested.
      assert found.release[:2] == version.Version(lowest[0]).release[:2]
