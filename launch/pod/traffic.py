"""What a compiled TPU program reads from and writes to the chip's memory.

Read from its text, loops counted as often as they run.
"""

import functools
import re

from launch.pod import hlo

# Names for memory that is there already, or for what a loop counts apart.
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
        'after-all', 'partition-id', 'replica-id', 'while', 'call',
        'conditional', 'opt-barrier')


def moved(text):
  """Returns the bytes one run reads from and writes to the chip's memory.

  Operands and results of every fused kernel, copy and collective that lie in
  the chip's memory; a kernel that slices an operand reads the slice, one that
  updates a slice in place writes the slice.
  """
  computations, entry = hlo.parse(text)
  kernel = functools.partial(_kernel, computations)
  return sum(times * sum(kernel(name, i) for i in computations[name])
             for name, times in hlo.runs(computations, entry).items())


def _kernel(computations, name, i):
  """The bytes that one instruction of a computation moves."""
  known = _by_name(computations, name)
  if i.opcode in FREE or i.opcode.endswith('-done') or (
      i.opcode == 'async-start'):
    return 0
  if i.opcode == 'custom-call' and re.search(
      r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w+)"', i.text):
    return 0
  read = [_hbm(known[o].arrays) for o in i.operands]
  written = _hbm(i.arrays)
  if i.opcode in ('copy-start', 'slice-start'):
    # The result names the source as well: (to, from) and (from, to).
    to, source = i.arrays[:2] if i.opcode == 'copy-start' else i.arrays[1::-1]
    return to.bytes * (to.hbm + source.hbm)
  if i.opcode in ('dynamic-slice', 'slice'):
    return written + min(read[0], sum(a.bytes for a in i.arrays))
  if i.opcode == 'dynamic-update-slice':
    update = sum(a.bytes for a in known[i.operands[1]].arrays)
    return read[1] + (update if written else 0)
  if i.opcode == 'fusion':
    return _fusion(computations, hlo.fused(i), read, i.arrays)
  return sum(read) + written


def _hbm(found):
  return sum(a.bytes for a in found if a.hbm)


def _by_name(computations, name):
  return {i.name: i for i in computations[name]}


def _fusion(computations, name, read, made):
  """The bytes of a fused kernel, given those of its operands and results."""
  total = 0
  for index, whole in enumerate(read):
    part = _part(computations, name, index)
    total += whole if part is None else min(whole, part)
  for a, part in zip(made, _updates(computations, name)):
    total += a.hbm * (a.bytes if part is None else min(a.bytes, part))
  return total


def _size(i):
  return sum(a.bytes for a in i.arrays)


def _updates(computations, name):
  """What a fused kernel writes of each result; None for all of it."""
  known = _by_name(computations, name)

  def update(i):
    while i.opcode == 'bitcast':
      i = known[i.operands[0]]
    if i.opcode == 'fusion':
      return _updates(computations, hlo.fused(i))[0]
    if i.opcode == 'dynamic-update-slice':
      return _size(known[i.operands[1]])
    return None

  (root,) = [i for i in known.values() if i.root]
  if root.opcode == 'tuple':
    return [update(known[o]) for o in root.operands]
  if root.opcode == 'fusion':
    return _updates(computations, hlo.fused(root))
  return [update(root)]


def _part(computations, name, index):
  """What a fused kernel reads of an operand; None for all of it."""
  instructions = computations[name]

  def part(read):
    total = 0
    for user in instructions:
      for position, operand in enumerate(user.operands):
        if operand != read:
          continue
        if user.opcode == 'bitcast':
          used = part(user.name)
        elif user.opcode == 'fusion':
          used = _part(computations, hlo.fused(user), position)
        elif position == 0 and user.opcode in ('dynamic-slice', 'slice',
                                               'gather'):
          used = _size(user)
        elif position == 0 and user.opcode == 'dynamic-update-slice':
          used = 0  # In place: what is not overwritten is not touched.
        else:
          used = None
        if used is None:
          return None
        total += used
    return total

  (start,) = [i.name for i in instructions if i.opcode == 'parameter'
              and f'parameter({index})' in i.text]
  return part(start)
