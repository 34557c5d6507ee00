"""How the code is written: what CONTRIBUTING asks for and can be counted.

The limits are what the code keeps today; a change may only tighten them.
"""

import ast
import functools
import pathlib
import re
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ('audiorank', 'launch', 'configs')
# Names that say that something was done to a value, not what it is.
PARTICIPLES = {'made', 'found', 'said', 'told', 'held', 'seen', 'taken',
               'given', 'kept'}
# Imported inside the functions that need them: each is large or optional.
OPTIONAL = {'torch', 'ray', 'wandb', 'trackio', 'tensorboardX', 'transformers',
            'huggingface_hub', 'gcsfs', 'dasheng', 'onnx', 'jax2onnx',
            'sklearn', 'tensorflow'}
LONGEST = 80  # Lines of a function: it fits a screen.
PARTICIPLES_LEFT = 3  # Aim: 0.
UNFOLDED = 2.  # Conditional expressions per 1,000 lines, at most.
COMMENTS = 5.5  # Comment lines per 100, at least; aim: 6.
ANNOTATED = 95.  # Per cent of public functions' arguments, at least.


class Source(NamedTuple):
  """A file of the product."""
  path: pathlib.Path
  module: str
  lines: list[str]
  tree: ast.Module


@functools.cache
def sources(room):
  """Returns the Sources of a room, read once."""
  out = []
  for path in sorted((ROOT / room).rglob('*.py')):
    text = path.read_text(encoding='utf-8')
    parts = path.relative_to(ROOT).with_suffix('').parts
    module = '.'.join(p for p in parts if p != '__init__')
    out.append(Source(path, module, text.splitlines(), ast.parse(text)))
  return out


def nodes(kind):
  """Yields (Source, node) of every node of a kind in the product."""
  for room in ROOMS:
    for source in sources(room):
      for node in ast.walk(source.tree):
        if isinstance(node, kind):
          yield source, node


def place(source, node):
  return f'{source.path.relative_to(ROOT)}:{node.lineno}'


def lines(room=ROOMS):
  return sum(len(s.lines) for r in room for s in sources(r))


def test_names_say_what_a_value_is():
  bad = [f'{place(s, n)} {n.id}' for s, n in nodes(ast.Name)
         if isinstance(n.ctx, ast.Store) and n.id in PARTICIPLES]
  bad += [f'{place(s, n)} {n.arg}' for s, n in nodes(ast.arg)
          if n.arg in PARTICIPLES]
  assert len(bad) <= PARTICIPLES_LEFT, bad


def test_default_tests_need_neither_torch_nor_transformers():
  """Both take seconds to import. The fixture `torch` skips without --slow; in
  the files left out here the tests that need either are marked slow."""
  names = re.compile(r"^ *(?:import|from) (?:torch|transformers)\b|"
                     r"importorskip\('(?:torch|transformers)\b", re.M)
  outside = {'conftest.py', 'families_test.py', 'notebooks_test.py',
             'transformers_models.py'}
  assert [path.name for path in sorted((ROOT / 'tests').glob('*.py'))
          if names.search(path.read_text(encoding='utf-8'))
          and path.name not in outside] == []
  extra, = re.findall(r"'test': \[(.*?)\]", (ROOT / 'setup.py').read_text(),
                      re.S)
  assert not {'torch', 'transformers', 'jax[cuda]'} & set(
      re.findall(r"'(.*?)'", extra))


def test_functions_fit_a_screen():
  assert [f'{place(s, n)} {n.name}' for s, n in nodes(
      (ast.FunctionDef, ast.AsyncFunctionDef))
          if n.end_lineno - n.lineno >= LONGEST] == []


def test_no_conditional_expression_within_another():
  nested = [place(s, n) for s, n in nodes(ast.IfExp)
            if any(isinstance(m, ast.IfExp) for m in ast.walk(n)
                   if m is not n)]
  assert nested == []


def test_conditional_expressions_are_few():
  count = sum(1 for _ in nodes(ast.IfExp))
  assert 1000 * count / lines() <= UNFOLDED


def test_comments_say_why():
  count = sum(line.lstrip().startswith('#') for room in ROOMS
              for s in sources(room) for line in s.lines)
  assert 100 * count / lines() >= COMMENTS


def test_public_functions_are_annotated():
  arguments, typed = 0, 0
  for _, node in nodes(ast.FunctionDef):
    if node.name.startswith('_'):
      continue
    own = [a for a in [*node.args.args, *node.args.kwonlyargs]
           if a.arg not in ('self', 'cls')]
    arguments += len(own)
    typed += sum(a.annotation is not None for a in own)
  assert 100 * typed / arguments >= ANNOTATED


def imports(source, inside_functions=True):
  """Yields the modules that a file imports, of the product and of others."""
  below = set()
  if not inside_functions:
    for node in ast.walk(source.tree):
      for_types = isinstance(node, ast.If) and (
          ast.unparse(node.test) == 'TYPE_CHECKING')
      if for_types or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        below |= set(map(id, ast.walk(node)))
  for node in ast.walk(source.tree):
    if id(node) in below:
      continue
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


@pytest.mark.parametrize('room, others', [
    ('audiorank', ('launch', 'configs', 'tests')), ('launch', ('tests',)),
    ('configs', ('audiorank', 'launch', 'tests'))])
def test_nothing_is_imported_from_above(room, others):
  assert [f'{s.module} imports {name}' for s in sources(room)
          for name in imports(s) if name.split('.')[0] in others] == []


def test_configs_import_nothing_but_ml_collections():
  allowed = {'configs', 'ml_collections', *sys.stdlib_module_names}
  assert [f'{s.module} imports {name}' for s in sources('configs')
          for name in imports(s) if name.split('.')[0] not in allowed] == []


def test_what_is_optional_is_imported_where_it_is_needed():
  assert [f'{s.module} imports {name}' for room in ('audiorank', 'launch')
          for s in sources(room) if 'benches' not in s.path.parts
          for name in imports(s, inside_functions=False)
          if name.split('.')[0] in OPTIONAL] == []


def arrows():
  """Returns {module of audiorank: modules it imports at the top level}."""
  modules = {s.module: s for s in sources('audiorank')}

  def own(name):
    # A symbol of a module, or the module itself.
    while name and name not in modules:
      name = name.rpartition('.')[0]
    return name

  out = {}
  for name, source in modules.items():
    targets = {own(i) for i in imports(source, inside_functions=False)}
    # A package offers what its own modules hold: no arrow of its own.
    out[name] = {t for t in targets if t and t != name
                 and not name.startswith(f'{t}.')
                 and not t.startswith(f'{name}.')} - {'audiorank'}
  return out


def test_no_modules_import_each_other_in_a_circle():
  graph, done = arrows(), set()

  def visit(name, path):
    assert name not in path, ' -> '.join([*path[path.index(name):], name])
    if name in done:
      return
    for target in sorted(graph[name]):
      visit(target, [*path, name])
    done.add(name)

  for name in sorted(graph):
    visit(name, [])


def test_the_leaves_import_nothing_else_of_ours():
  graph = arrows()
  assert graph['audiorank.files'] == set()
  assert graph['audiorank.config'] == {'audiorank.files'}


def test_no_todos():
  assert [f'{s.path.relative_to(ROOT)}:{i}' for room in ROOMS
          for s in sources(room) for i, line in enumerate(s.lines, 1)
          if re.search(r'#.*\b(TODO|FIXME|XXX)\b', line)] == []
