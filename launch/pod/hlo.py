"""What a compiled program holds and sends, read from its text.

XLA's own cost analysis counts the body of a loop once; here every loop counts
as often as it runs. Sizes are those that lie in memory: the TPU compiler pads
the two fastest dimensions of an array to whole tiles, so that f32[62,1] takes
as much as f32[64,128].
"""

import math
import re
from typing import NamedTuple

BYTES = {'pred': 1, 's2': .25, 'u2': .25, 's4': .5, 'u4': .5, 's8': 1,
         'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4,
         'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16}
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
         'collective-permute')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?')
_LINE = re.compile(r'\s+(ROOT )?%([^ ]+) = (.*)')
_OPCODE = re.compile(r' ([a-z][a-z0-9-]*)\(')
_CALLS = re.compile(r'(?:body|condition|calls|to_apply)=%([^ ,)}]+)')


class Array(NamedTuple):
  dtype: str
  dims: tuple
  bytes: float  # Padded to tiles.
  hbm: bool  # In the chip's memory, not in the cores' own.


class Instruction(NamedTuple):
  name: str
  opcode: str
  arrays: list  # Of the result; several for a tuple.
  operands: list  # Names.
  text: str
  root: bool


class Collective(NamedTuple):
  kind: str
  times: float  # Runs of it in one run of the program.
  bytes: float  # The whole array of one run, on one device, unpadded.
  shapes: tuple  # Dims of every array.
  group: int  # Devices that take part together.
  text: str


def arrays(text):
  """Returns the Arrays of a shape such as '(f32[8]{0:T(128)S(1)}, s32[])'."""
  out = []
  for dtype, dims, layout in _SHAPE.findall(text):
    if dtype not in BYTES:
      continue
    dims = tuple(int(d) for d in dims.split(',') if d)
    space = re.search(r'S\((\d+)\)', layout)
    out.append(Array(dtype, dims, padded(dims, layout) * BYTES[dtype],
                     not space or space[1] == '0'))
  return out


def padded(dims, layout):
  """Returns the elements an array takes up with its layout's first tile."""
  order, _, tiles = layout.partition(':')
  tile = re.match(r'T\(([\d,]+)\)', tiles)
  if not tile or not dims:
    return math.prod(dims)
  sizes = [dims[int(i)] for i in order.split(',') if i]
  for i, t in enumerate(reversed([int(t) for t in tile[1].split(',')])):
    if i < len(sizes):
      sizes[i] = -(-sizes[i] // t) * t
  return math.prod(sizes)


def parse(text):
  """Returns ({computation: [Instruction]}, the entry's name)."""
  out, entry, current = {}, None, None
  for line in text.splitlines():
    if line and not line[0].isspace():
      name = re.match(r'(ENTRY )?%?([^ (]+) \(', line)
      current = None
      if name and line.rstrip().endswith('{'):
        current = out.setdefault(name[2], [])
        entry = name[2] if name[1] else entry
      continue
    found = _LINE.match(line)
    if current is None or not found:
      continue
    root, name, rest = found.groups()
    # The result's shape stands before the opcode and may be a tuple.
    code = _OPCODE.search(' ' + rest if rest[0] != '(' else
                          rest, _closing(rest) if rest[0] == '(' else 0)
    if not code:
      continue
    start = code.end() - (rest[0] != '(')
    inside = rest[start:start + _closing('(' + rest[start:]) - 1]
    current.append(Instruction(
        name, code[1], arrays(rest[:start]),
        re.findall(r'%([^ ,)]+)', inside), rest, bool(root)))
  if entry is None:
    raise ValueError('the text of a compiled program has no ENTRY')
  return out, entry


def _closing(text):
  """Returns the position after the bracket that closes text[0]."""
  depth = 0
  for i, c in enumerate(text):
    depth += (c == '(') - (c == ')')
    if depth == 0:
      return i + 1
  return len(text)


def trips(computations, loop):
  """Returns how often a `while` instruction's body runs at least.

  That is 1 where it hangs on the data, as in the iterations of an SVD.
  """
  known = re.search(r'known_trip_count[^0-9]*(\d+)', loop.text)
  if known:
    return int(known[1])
  condition = computations[re.search(r'condition=%([^ ,]+)', loop.text)[1]]
  by_name = {i.name: i for i in condition}
  (root,) = [i for i in condition if i.root]
  bound = [re.search(r'constant\((-?\d+)\)', by_name[o].text)
           for o in root.operands if by_name[o].opcode == 'constant']
  if root.opcode != 'compare' or 'direction=LT' not in root.text or (
      len(bound) != 1):
    return 1
  return int(bound[0][1])


def runs(computations, entry):
  """Returns {computation: how often it runs}, fused ones left out."""
  out = {}

  def visit(name, times):
    out[name] = out.get(name, 0) + times
    for i in computations[name]:
      if i.opcode == 'while':
        body = re.search(r'body=%([^ ,]+)', i.text)[1]
        visit(body, times * trips(computations, i))
      elif i.opcode in ('call', 'conditional', 'async-start'):
        for called in _CALLS.findall(i.text):
          visit(called, times)
  visit(entry, 1)
  return out


def collectives(text):
  """Returns the Collectives of a program's text, loops counted out."""
  computations, entry = parse(text)
  out = []
  for name, times in runs(computations, entry).items():
    for i in computations[name]:
      if i.opcode == 'fusion':
        # TPUs fuse a sum with the cut that follows: a reduce-scatter.
        out += [_collective(j, times)._replace(kind='reduce-scatter')
                for j in computations[fused(i)] if j.opcode == 'all-reduce']
      elif i.opcode.removesuffix('-start') in KINDS:
        out.append(_collective(i, times))
  return out


def _collective(i, times):
  kind, n = i.opcode.removesuffix('-start'), group(i.text)
  made = i.arrays
  # A started gather's result is (what goes in, what comes out).
  if i.opcode.endswith('-start') and kind != 'all-reduce':
    made = made[len(made) // 2:]
  plain = sum(math.prod(a.dims) * BYTES[a.dtype] for a in made)
  return Collective(kind, times, plain * (n if kind == 'reduce-scatter' else 1),
                    tuple(a.dims for a in made), n, i.text)


def group(text):
  """Returns how many devices of a collective take part together."""
  axes = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text)
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", axes[2]))
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', text)
  if iota:
    return int(iota[2])
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', text)
  if listed:
    return listed[1].count(',') + 1
  return 2 if 'source_target_pairs' in text else 1


def wire(c):
  """Returns the bytes one device sends for a Collective, all its runs.

  The least any algorithm needs: an all-reduce of V bytes over n devices
  sends 2 V (n - 1) / n of them, a gather, scatter or exchange V (n - 1) / n.
  """
  if c.kind == 'collective-permute':
    return c.times * c.bytes
  share = (c.group - 1) / c.group
  return c.times * c.bytes * share * (2 if c.kind == 'all-reduce' else 1)


def fused(i):
  """Returns the name of the computation that a fusion runs."""
  return re.search(r'calls=%([^ ,)}]+)', i.text)[1]


def double(text):
  """Returns whether a program computes in float64."""
  return bool(re.search(r'\bf64\[', text))
