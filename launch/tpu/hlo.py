"""Counts the bytes that a compiled program sends and moves, from its text.

The cost analysis of XLA counts the body of a loop once; here it counts as often
as it runs. Sizes are those in memory: the TPU compiler pads the two fastest
dimensions of an array to whole tiles, so that f32[62,1] takes as much as
f32[64,128].
"""

import math
import re
from typing import NamedTuple

BYTES = {'pred': 1, 's2': .25, 'u2': .25, 's4': .5, 'u4': .5, 's8': 1,
         'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4,
         'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
               'collective-permute')
# Instructions that move nothing, or whose computations are counted separately.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'partition-id', 'replica-id', 'while', 'call',
         'conditional', 'opt-barrier', 'async-start')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?')
_LINE = re.compile(r'\s+(ROOT )?%([^ ]+) = (.*)')
_OPCODE = re.compile(r' ([a-z][a-z0-9-]*)\(')
_CALLS = re.compile(r'(?:body|condition|calls|to_apply)=%([^ ,)}]+)')
_TARGET = re.compile(r'custom_call_target="(\w+)"')


class Array(NamedTuple):
  """An array in a program."""
  dtype: str
  dims: tuple[int, ...]
  bytes: float  # Padded to tiles.
  hbm: bool  # Whether it is in the chip's memory, or else in the cores'.


class Instruction(NamedTuple):
  """A line of a computation."""
  name: str
  opcode: str
  arrays: list[Array]  # Of the result; several for a tuple.
  operands: list[str]  # Names.
  text: str
  root: bool  # Whether it is the result of its computation.


class Collective(NamedTuple):
  """An exchange between devices."""
  kind: str  # One of COLLECTIVES.
  times: float  # How often it runs in one run of the program.
  bytes: float  # The whole array on one device, unpadded.
  shapes: tuple[tuple[int, ...], ...]  # Dims of every array.
  group: int  # Devices that take part together.
  text: str


Computations = dict[str, list[Instruction]]


def arrays(text: str) -> list[Array]:
  """Returns the Arrays of a shape such as '(f32[8]{0:T(128)S(1)}, s32[])'."""
  parts = []
  for dtype, sizes, layout in _SHAPE.findall(text):
    # Tokens and the like take no memory.
    if dtype not in BYTES:
      continue
    dims = tuple(int(d) for d in sizes.split(',') if d)
    # S(0) or nothing is the chip's memory, S(1) and more are others.
    space = re.search(r'S\((\d+)\)', layout)
    parts.append(Array(dtype, dims, padded(dims, layout) * BYTES[dtype],
                       not space or space[1] == '0'))
  return parts


def padded(dims: tuple[int, ...], layout: str) -> int:
  """Returns the number of elements of an array with padding.

  Args:
    dims: of the array.
    layout: such as '1,0:T(8,128)': dimensions, fastest first, and tiles, of
      which only the first is considered.
  """
  order, _, tiles = layout.partition(':')
  tile = re.match(r'T\(([\d,]+)\)', tiles)
  if not tile or not dims:
    return math.prod(dims)
  sizes = [dims[int(i)] for i in order.split(',') if i]
  # Tiles cover the fastest dimensions and are written slowest first.
  for i, t in enumerate(reversed([int(t) for t in tile[1].split(',')])):
    if i < len(sizes):
      # Rounded up to whole tiles.
      sizes[i] = -(-sizes[i] // t) * t
  return math.prod(sizes)


def parse(text: str) -> tuple[Computations, str]:
  """Returns ({computation: [Instruction]}, the entry's name).

  Raises:
    ValueError: a text without an entry.
  """
  computations: Computations = {}
  entry: str | None = None
  current: list[Instruction] | None = None
  for line in text.splitlines():
    # Headers of computations are not indented, instructions are.
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


def _instruction(root: str | None, name: str, rest: str
                 ) -> Instruction | None:
  """Returns the Instruction of a line, or None if it is something else.

  Args:
    root: 'ROOT ' for the result of the computation.
    name: of the instruction.
    rest: the line after 'name = '.
  """
  # The result's shape comes first. The shape of a tuple is in brackets, and its
  # layouts may look like opcodes, so the search begins after it.
  shape = 0
  if rest[0] == '(':
    shape = _closing(rest)
  code = _OPCODE.search(rest, shape)
  if not code:
    return None
  # Operands are within the opcode's brackets; attributes follow them.
  inside = rest[code.end():]
  inside = inside[:_closing('(' + inside) - 1]
  return Instruction(name, code[1], arrays(rest[:code.start()]),
                     re.findall(r'%([^ ,)]+)', inside), rest, bool(root))


def _closing(text: str) -> int:
  """Returns the position after the bracket that closes text[0]."""
  depth = 0
  for i, c in enumerate(text):
    depth += (c == '(') - (c == ')')
    if depth == 0:
      return i + 1
  return len(text)


def trips(computations: Computations, loop: Instruction) -> int:
  """Returns how often the body of a `while` instruction runs at least.

  It is 1 if it depends on the data, as for the iterations of an SVD.
  """
  # XLA writes the count where it could prove it.
  known = re.search(r'known_trip_count[^0-9]*(\d+)', loop.text)
  if known:
    return int(known[1])
  # Otherwise the condition must be `counter < constant`.
  condition = computations[_match(r'condition=%([^ ,]+)', loop.text)]
  by_name = {i.name: i for i in condition}
  (root,) = [i for i in condition if i.root]
  limits = [_match(r'constant\((-?\d+)\)', by_name[o].text)
            for o in root.operands if by_name[o].opcode == 'constant']
  # Any other condition may depend on the data.
  if root.opcode != 'compare' or 'direction=LT' not in root.text or (
      len(limits) != 1):
    return 1
  return int(limits[0])


def _match(pattern: str | re.Pattern[str], text: str) -> str:
  """Returns the first group of a pattern that must be in a text."""
  match = re.search(pattern, text)
  if match is None:
    raise ValueError(f'no {pattern} in {text!r}')
  return match[1]


def runs(computations: Computations, entry: str) -> dict[str, float]:
  """Returns {computation: how often it runs}, without fused ones."""
  counts: dict[str, float] = {}

  def visit(name: str, times: float) -> None:
    # A computation may be called from several places.
    counts[name] = counts.get(name, 0) + times
    for i in computations[name]:
      if i.opcode == 'while':
        body = _match(r'body=%([^ ,]+)', i.text)
        # Loops multiply: a collective in a scan over blocks runs once a block.
        visit(body, times * trips(computations, i))
      elif i.opcode in ('call', 'conditional', 'async-start'):
        for callee in _CALLS.findall(i.text):
          visit(callee, times)

  visit(entry, 1)
  return counts


def collectives(text: str) -> list[Collective]:
  """Returns the Collectives of a program's text, also those in loops."""
  computations, entry = parse(text)
  out = []
  for name, times in runs(computations, entry).items():
    for i in computations[name]:
      if i.opcode == 'fusion':
        # The TPU compiler fuses an all-reduce with a following slice. Together
        # they are a reduce-scatter.
        out += [_collective(j, times)._replace(kind='reduce-scatter')
                for j in computations[fused(i)] if j.opcode == 'all-reduce']
      # Of an asynchronous pair, the start; its '-done' sends nothing more.
      elif i.opcode.removesuffix('-start') in COLLECTIVES:
        out.append(_collective(i, times))
  return out


def _collective(i: Instruction, times: float) -> Collective:
  """Returns the Collective of an instruction that runs so many times."""
  kind, devices = i.opcode.removesuffix('-start'), group(i.text)
  results = i.arrays
  # The result of a start is (inputs, outputs), except for an all-reduce.
  if i.opcode.endswith('-start') and kind != 'all-reduce':
    results = results[len(results) // 2:]
  plain = sum(math.prod(a.dims) * BYTES[a.dtype] for a in results)
  if kind == 'reduce-scatter':
    plain *= devices  # The result is one device's share.
  return Collective(kind, times, plain, tuple(a.dims for a in results),
                    devices, i.text)


def group(text: str) -> int:
  """Returns the number of devices in a group of a collective."""
  # XLA writes groups in three ways: by axes of the mesh, by their number and
  # size, or as lists.
  axes = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text)
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", axes[2]))
  # [8,4]<=[32] is 8 groups of 4.
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', text)
  if iota:
    return int(iota[2])
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', text)
  if listed:
    return listed[1].count(',') + 1
  # A permute has one sender and one receiver.
  if 'source_target_pairs' in text:
    return 2
  return 1


def wire(c: Collective) -> float:
  """Returns the bytes that a device sends for all runs of a Collective.

  This is the minimum of any algorithm: an all-reduce of V bytes over n devices
  sends 2 V (n - 1) / n, a gather, scatter or exchange V (n - 1) / n.
  """
  if c.kind == 'collective-permute':
    return c.times * c.bytes
  share = (c.group - 1) / c.group
  if c.kind == 'all-reduce':
    share *= 2
  return c.times * c.bytes * share


def fused(i: Instruction) -> str:
  """Returns the name of the computation of a fusion."""
  return _match(r'calls=%([^ ,)}]+)', i.text)


def double(text: str) -> bool:
  """Returns whether a program computes in float64."""
  return bool(re.search(r'\bf64\[', text))


def traffic(text: str) -> float:
  """Returns the bytes that one run reads from and writes to the chip's memory.

  These are the operands and results of every kernel, copy and collective that
  are in the chip's memory. A kernel that slices an operand reads the slice, and
  one that updates a slice in place writes the slice.
  """
  computations, entry = parse(text)
  return sum(times * sum(moved(computations, name).values())
             for name, times in runs(computations, entry).items())


def moved(computations: Computations, name: str) -> dict[str, float]:
  """Returns {instruction: bytes that it moves} for one run of a computation."""
  by_name = {i.name: i for i in computations[name]}
  return {i.name: _moved(computations, by_name, i)
          for i in computations[name]}


def _moved(computations: Computations, by_name: dict[str, Instruction],
           i: Instruction) -> float:
  """Returns the bytes that one instruction moves."""
  # The bytes of an asynchronous pair are counted at its start.
  if i.opcode in _FREE or i.opcode.endswith('-done'):
    return 0
  operands = i.operands
  if i.opcode == 'custom-call':
    target = _match(_TARGET, i.text)
    # These name memory and move nothing.
    if target in ('AllocateBuffer', 'ConcatBitcast') or (
        target.startswith('Assume')):
      return 0
    if target == 'tpu_custom_call':
      # A Pallas kernel has an array as operand once for each part it reads.
      operands = list(dict.fromkeys(operands))
  read = [_hbm(by_name[o].arrays) for o in operands]
  written = _hbm(i.arrays)
  if i.opcode in ('copy-start', 'slice-start'):
    # The result is (destination, source) of a copy, the reverse of a slice.
    to, source = i.arrays[:2]
    if i.opcode == 'slice-start':
      to, source = source, to
    return to.bytes * (to.hbm + source.hbm)
  if i.opcode in ('dynamic-slice', 'slice'):
    # 0 where the operand lies in the memory of the cores.
    return written + min(read[0], _size(i))
  # Operands are array, update and indices; the rest of the array stays.
  if i.opcode == 'dynamic-update-slice':
    if not written:
      return read[1]
    return read[1] + _size(by_name[i.operands[1]])
  if i.opcode == 'fusion':
    return _fusion(computations, fused(i), read, i.arrays)
  return sum(read) + written


def _hbm(results: list[Array]) -> float:
  """Returns the bytes of the arrays in the chip's memory."""
  return sum(a.bytes for a in results if a.hbm)


def _size(i: Instruction) -> float:
  """Returns the bytes of a result, in any memory."""
  return sum(a.bytes for a in i.arrays)


def _fusion(computations: Computations, name: str, read: list[float],
            results: list[Array]) -> float:
  """Returns the bytes that a fused kernel moves.

  Args:
    computations: of the program.
    name: of the kernel's computation.
    read: bytes of its operands in the chip's memory.
    results: its results.
  """
  total = 0.
  for index, whole in enumerate(read):
    total += min(whole, _part_read(computations, name, index))
  for array, part in zip(results, _parts_written(computations, name)):
    if array.hbm:
      total += min(array.bytes, part)
  return total


def _parts_written(computations: Computations, name: str) -> list[float]:
  """Returns the bytes that a fused kernel writes of each result.

  Infinity means the whole result.
  """
  by_name = {i.name: i for i in computations[name]}

  def update(i: Instruction) -> float:
    # A bitcast is another name of the same bytes.
    while i.opcode == 'bitcast':
      i = by_name[i.operands[0]]
    if i.opcode == 'fusion':
      return _parts_written(computations, fused(i))[0]
    if i.opcode == 'dynamic-update-slice':
      return _size(by_name[i.operands[1]])
    return math.inf

  (root,) = [i for i in by_name.values() if i.root]
  if root.opcode == 'tuple':
    return [update(by_name[o]) for o in root.operands]
  if root.opcode == 'fusion':
    return _parts_written(computations, fused(root))
  return [update(root)]


def _part_read(computations: Computations, name: str, index: int) -> float:
  """Returns the bytes that a fused kernel reads of an operand.

  Infinity means the whole operand.
  """
  instructions = computations[name]

  def one_use(user: Instruction, position: int) -> float:
    if user.opcode == 'bitcast':
      return part(user.name)
    if user.opcode == 'fusion':
      return _part_read(computations, fused(user), position)
    if position == 0 and user.opcode in ('dynamic-slice', 'slice', 'gather'):
      return _size(user)
    if position == 0 and user.opcode == 'dynamic-update-slice':
      return 0  # In place: the rest of the operand is not touched.
    return math.inf

  def part(operand: str) -> float:
    return sum(one_use(user, position) for user in instructions
               for position, name in enumerate(user.operands)
               if name == operand)

  (start,) = [i.name for i in instructions if i.opcode == 'parameter'
              and f'parameter({index})' in i.text]
  return part(start)
