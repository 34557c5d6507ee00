"""What a compiled program sends, and moves in memory, read from its text.

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
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
               'collective-permute')
# Names for memory that is there already, or for what a loop counts apart.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'partition-id', 'replica-id', 'while', 'call',
         'conditional', 'opt-barrier', 'async-start')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?')
_LINE = re.compile(r'\s+(ROOT )?%([^ ]+) = (.*)')
_OPCODE = re.compile(r' ([a-z][a-z0-9-]*)\(')
_CALLS = re.compile(r'(?:body|condition|calls|to_apply)=%([^ ,)}]+)')
_TARGET = re.compile(r'custom_call_target="(\w+)"')


class Array(NamedTuple):
  dtype: str
  dims: tuple[int, ...]
  bytes: float  # Padded to tiles.
  hbm: bool  # In the chip's memory, not in the cores' own.


class Instruction(NamedTuple):
  name: str
  opcode: str
  arrays: list[Array]  # Of the result; several for a tuple.
  operands: list[str]  # Names.
  text: str
  root: bool


class Collective(NamedTuple):
  kind: str
  times: float  # Runs of it in one run of the program.
  bytes: float  # The whole array of one run, on one device, unpadded.
  shapes: tuple[tuple[int, ...], ...]  # Dims of every array.
  group: int  # Devices that take part together.
  text: str


Computations = dict[str, list[Instruction]]


def arrays(text: str) -> list[Array]:
  """Returns the Arrays of a shape such as '(f32[8]{0:T(128)S(1)}, s32[])'."""
  parts = []
  for dtype, dims, layout in _SHAPE.findall(text):
    if dtype not in BYTES:
      continue
    dims = tuple(int(d) for d in dims.split(',') if d)
    space = re.search(r'S\((\d+)\)', layout)
    parts.append(Array(dtype, dims, padded(dims, layout) * BYTES[dtype],
                       not space or space[1] == '0'))
  return parts


def padded(dims: tuple[int, ...], layout: str) -> int:
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


def parse(text: str) -> tuple[Computations, str]:
  """Returns ({computation: [Instruction]}, the entry's name).

  Raises:
    ValueError: a text without an entry.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if line and not line[0].isspace():
      header = re.match(r'(ENTRY )?%?([^ (]+) \(', line)
      current = None
      if header and line.rstrip().endswith('{'):
        current = computations.setdefault(header[2], [])
        if header[1]:
          entry = header[2]
      continue
    parts = _LINE.match(line)
    if current is not None and parts:
      instruction = _instruction(*parts.groups())
      if instruction:
        current.append(instruction)
  if entry is None:
    raise ValueError('the text of a compiled program has no ENTRY')
  return computations, entry


def _instruction(root, name, rest):
  """Returns the Instruction of what stands to the right of its name."""
  # The result's shape comes first. Of a tuple it stands in brackets, in which
  # layouts may look like opcodes.
  shape = _closing(rest) if rest[0] == '(' else 0
  code = _OPCODE.search(rest, shape)
  if not code:
    return None
  inside = rest[code.end():]
  inside = inside[:_closing('(' + inside) - 1]
  return Instruction(name, code[1], arrays(rest[:code.start()]),
                     re.findall(r'%([^ ,)]+)', inside), rest, bool(root))


def _closing(text):
  """Returns the position after the bracket that closes text[0]."""
  depth = 0
  for i, c in enumerate(text):
    depth += (c == '(') - (c == ')')
    if depth == 0:
      return i + 1
  return len(text)


def trips(computations: Computations, loop: Instruction) -> int:
  """Returns how often a `while` instruction's body runs at least.

  That is 1 where it depends on the data, as in the iterations of an SVD.
  """
  known = re.search(r'known_trip_count[^0-9]*(\d+)', loop.text)
  if known:
    return int(known[1])
  condition = computations[re.search(r'condition=%([^ ,]+)', loop.text)[1]]
  by_name = {i.name: i for i in condition}
  (root,) = [i for i in condition if i.root]
  limits = [re.search(r'constant\((-?\d+)\)', by_name[o].text)
            for o in root.operands if by_name[o].opcode == 'constant']
  if root.opcode != 'compare' or 'direction=LT' not in root.text or (
      len(limits) != 1):
    return 1
  return int(limits[0][1])


def runs(computations: Computations, entry: str) -> dict[str, float]:
  """Returns {computation: how often it runs}, fused ones left out."""
  counts = {}

  def visit(name, times):
    counts[name] = counts.get(name, 0) + times
    for i in computations[name]:
      if i.opcode == 'while':
        body = re.search(r'body=%([^ ,]+)', i.text)[1]
        visit(body, times * trips(computations, i))
      elif i.opcode in ('call', 'conditional', 'async-start'):
        for callee in _CALLS.findall(i.text):
          visit(callee, times)

  visit(entry, 1)
  return counts


def collectives(text: str) -> list[Collective]:
  """Returns the Collectives of a program's text, loops counted out."""
  computations, entry = parse(text)
  out = []
  for name, times in runs(computations, entry).items():
    for i in computations[name]:
      if i.opcode == 'fusion':
        # TPUs fuse a sum with the cut that follows: a reduce-scatter.
        out += [_collective(j, times)._replace(kind='reduce-scatter')
                for j in computations[fused(i)] if j.opcode == 'all-reduce']
      elif i.opcode.removesuffix('-start') in COLLECTIVES:
        out.append(_collective(i, times))
  return out


def _collective(i, times):
  kind, devices = i.opcode.removesuffix('-start'), group(i.text)
  results = i.arrays
  # A started gather's result is (what goes in, what comes out).
  if i.opcode.endswith('-start') and kind != 'all-reduce':
    results = results[len(results) // 2:]
  plain = sum(math.prod(a.dims) * BYTES[a.dtype] for a in results)
  if kind == 'reduce-scatter':
    plain *= devices  # The result is one device's share.
  return Collective(kind, times, plain, tuple(a.dims for a in results),
                    devices, i.text)


def group(text: str) -> int:
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


def wire(c: Collective) -> float:
  """Returns the bytes one device sends for a Collective, all its runs.

  The least any algorithm needs: an all-reduce of V bytes over n devices
  sends 2 V (n - 1) / n of them, a gather, scatter or exchange V (n - 1) / n.
  """
  if c.kind == 'collective-permute':
    return c.times * c.bytes
  share = (c.group - 1) / c.group
  if c.kind == 'all-reduce':
    share *= 2
  return c.times * c.bytes * share


def fused(i: Instruction) -> str:
  """Returns the name of the computation that a fusion runs."""
  return re.search(r'calls=%([^ ,)}]+)', i.text)[1]


def double(text: str) -> bool:
  """Returns whether a program computes in float64."""
  return bool(re.search(r'\bf64\[', text))


def traffic(text: str) -> float:
  """Returns the bytes one run reads from and writes to the chip's memory.

  Operands and results of every fused kernel, copy and collective that lie in
  the chip's memory; a kernel that slices an operand reads the slice, one that
  updates a slice in place writes the slice.
  """
  computations, entry = parse(text)
  return sum(times * sum(moved(computations, name).values())
             for name, times in runs(computations, entry).items())


def moved(computations: Computations, name: str) -> dict[str, float]:
  """Returns {instruction: bytes it moves} of one run of a computation."""
  by_name = {i.name: i for i in computations[name]}
  return {i.name: _moved(computations, by_name, i)
          for i in computations[name]}


def _moved(computations, by_name, i):
  """The bytes that one instruction moves."""
  if i.opcode in _FREE or i.opcode.endswith('-done'):
    return 0
  operands = i.operands
  if i.opcode == 'custom-call':
    target = _TARGET.search(i.text)[1]
    if target in ('AllocateBuffer', 'ConcatBitcast') or (
        target.startswith('Assume')):
      return 0
    if target == 'tpu_custom_call':
      # A Pallas kernel names an array once for each part that it reads.
      operands = list(dict.fromkeys(operands))
  read = [_hbm(by_name[o].arrays) for o in operands]
  written = _hbm(i.arrays)
  if i.opcode in ('copy-start', 'slice-start'):
    # The result names the source as well: (to, from) and (from, to).
    to, source = i.arrays[:2]
    if i.opcode == 'slice-start':
      to, source = source, to
    return to.bytes * (to.hbm + source.hbm)
  if i.opcode in ('dynamic-slice', 'slice'):
    return written + min(read[0], _size(i))
  if i.opcode == 'dynamic-update-slice':
    return read[1] + (_size(by_name[i.operands[1]]) if written else 0)
  if i.opcode == 'fusion':
    return _fusion(computations, fused(i), read, i.arrays)
  return sum(read) + written


def _hbm(results):
  return sum(a.bytes for a in results if a.hbm)


def _size(i):
  return sum(a.bytes for a in i.arrays)


def _fusion(computations, name, read, results):
  """The bytes of a fused kernel, given those of its operands and results."""
  total = 0
  for index, whole in enumerate(read):
    part = _part_read(computations, name, index)
    total += whole if part is None else min(whole, part)
  for array, part in zip(results, _parts_written(computations, name)):
    if array.hbm:
      total += array.bytes if part is None else min(array.bytes, part)
  return total


def _parts_written(computations, name):
  """What a fused kernel writes of each result; None for all of it."""
  by_name = {i.name: i for i in computations[name]}

  def update(i):
    while i.opcode == 'bitcast':
      i = by_name[i.operands[0]]
    if i.opcode == 'fusion':
      return _parts_written(computations, fused(i))[0]
    if i.opcode == 'dynamic-update-slice':
      return _size(by_name[i.operands[1]])
    return None

  (root,) = [i for i in by_name.values() if i.root]
  if root.opcode == 'tuple':
    return [update(by_name[o]) for o in root.operands]
  if root.opcode == 'fusion':
    return _parts_written(computations, fused(root))
  return [update(root)]


def _part_read(computations, name, index):
  """What a fused kernel reads of an operand; None for all of it."""
  instructions = computations[name]

  def one_use(user, position):
    if user.opcode == 'bitcast':
      return part(user.name)
    if user.opcode == 'fusion':
      return _part_read(computations, fused(user), position)
    if position == 0 and user.opcode in ('dynamic-slice', 'slice', 'gather'):
      return _size(user)
    if position == 0 and user.opcode == 'dynamic-update-slice':
      return 0  # In place: what is not overwritten is not touched.
    return None

  def part(operand):
    uses = [one_use(user, position) for user in instructions
            for position, name in enumerate(user.operands) if name == operand]
    return None if None in uses else sum(uses)

  (start,) = [i.name for i in instructions if i.opcode == 'parameter'
              and f'parameter({index})' in i.text]
  return part(start)
