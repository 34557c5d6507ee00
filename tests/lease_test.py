"""Of two that want a lease never both have it, whatever fails."""

import itertools
import json
import random
import re

import pytest

from audiorank import files
from audiorank import lease

TERM = 90.


class World:
  """A store of one object under faults, and the time, both simulated.

  Args:
    seed: of the faults.
  """

  def __init__(self, seed):
    self.random = random.Random(seed)
    self.now = 0.
    self.data, self.generation = b'', 0
    self.faults = True
    self.delayed = []  # Writes that are still on their way.
    self._numbers = itertools.count(1)

  def clock(self):
    return self.now

  def read(self, timeout):
    if self.faults and self.random.random() < .1:
      raise OSError('503')
    self.now += self.random.uniform(0, .2)
    return self.data, self.generation

  def write(self, data, generation, timeout):
    fault = self.random.random() if self.faults else 1.
    if fault < .1:
      raise OSError('503')
    if fault < .15:  # It arrives after the sender has given up.
      self.delayed.append((self.now + self.random.uniform(0, 2 * TERM), data,
                           generation))
      self.now += timeout
      raise OSError('no answer')
    self.now += self.random.uniform(0, .2)
    number = self._apply(data, generation)
    if fault < .25:  # Carried out, but the answer is lost.
      raise OSError('connection lost')
    if fault < .3:  # Carried out, answer lost, sent again by the client.
      number = self._apply(data, generation)
    return number

  def _apply(self, data, generation):
    if generation != self.generation:
      raise files.Changed
    self.data, self.generation = data, next(self._numbers)
    return self.generation

  def arrive(self):
    """Carries out the writes that have been on their way."""
    for late in [d for d in self.delayed if d[0] <= self.now]:
      self.delayed.remove(late)
      try:
        self._apply(*late[1:])
      except files.Changed:
        pass


class Process:
  """One that wants the lease, and works while it has it."""

  def __init__(self, world, name):
    self.world, self.name = world, name
    self.watch = lease.Watch(world.clock)
    self.lease, self.next = None, 0.

  def holds(self):
    return self.lease is not None and not self.lease.expired()

  def step(self):
    """Does what is due; returns whether something was."""
    world = self.world
    if world.now < self.next:
      return False
    if world.faults and world.random.random() < .02:  # Paused, or swapped out.
      self.next = world.now + world.random.uniform(0, 3 * TERM)
      return True
    self.next = world.now + 1
    try:
      if self.lease is None:
        self.lease = lease.Lease(
            'run', world, lambda before: {'pid': self.name}, self.watch,
            world.clock, TERM)
        self.next = world.now + TERM * lease.BEAT
      elif world.faults and world.random.random() < .02:
        self.lease.release()
        self.lease, self.next = None, world.now + 5
      else:
        self.lease.beat()
        self.next = world.now + TERM * lease.BEAT
    except lease.Lost:
      # As a process that is started again: what it had seen is forgotten.
      self.lease, self.watch = None, lease.Watch(world.clock)
    except (files.LockHeld, OSError):
      pass
    return True


@pytest.mark.parametrize('seed', range(40))
def test_two_never_hold_it_under_faults_and_pauses(seed):
  world = World(seed)
  processes = [Process(world, n) for n in range(3)]
  holders = set()
  for i in range(2500):
    world.faults = i < 2000
    for process in world.random.sample(processes, 3):
      process.step()
      world.arrive()
      at_work = [p.name for p in processes if p.holds()]
      assert len(at_work) <= 1, (world.now, at_work)
      holders.update(at_work)
    world.now += world.random.uniform(0, 8)
  assert any(p.holds() for p in processes)  # Once the faults are over.
  assert len(holders) > 1  # It did change hands.


def test_a_holder_that_dies_is_replaced_after_its_term():
  world = World(0)
  world.faults = False
  one = lease.Lease('run', world, lambda b: {}, lease.Watch(world.clock),
                    world.clock, TERM)
  two, began = Process(world, 2), world.now
  while not two.holds():
    world.now += 1
    two.step()
    assert world.now - began < 1.1 * TERM
  assert world.now - began >= TERM
  assert one.expired()
  with pytest.raises(lease.Lost):
    one.beat()
  one.release()  # It does nothing to the other's.
  assert json.loads(world.data)['pid'] == 2


def test_what_was_released_is_free_at_once():
  world = World(0)
  world.faults = False
  one = lease.Lease('run', world, lambda b: {}, lease.Watch(world.clock),
                    world.clock, TERM)
  one.release()
  assert world.data == b'' and world.generation
  two = Process(world, 2)
  two.step()
  assert two.holds()


def test_text_of_others_is_no_free_lease():
  world = World(0)
  world.data, world.generation = b'not a lease', 5
  with pytest.raises(files.LockHeld):
    lease.Lease('run', world, lambda b: {}, lease.Watch(world.clock),
                world.clock, TERM)


def test_no_wall_clock_is_read():
  with open(lease.__file__, encoding='utf-8') as file:
    assert not re.search(r'time\.time\(|datetime|utcnow', file.read())


@pytest.mark.parametrize('text', ['0', '-3', 'soon', 'inf'])
def test_a_term_that_is_none(text, monkeypatch):
  monkeypatch.setenv('AUDIORANK_LEASE_SECONDS', text)
  with pytest.raises(ValueError, match=f'AUDIORANK_LEASE_SECONDS={text}'):
    lease.term()


def test_a_process_that_ended_is_known_on_its_machine():
  mine = lease.identity()
  assert not lease.ended(mine)
  assert lease.ended({**mine, 'started': '1'})  # Its number was given anew.
  assert lease.ended({**mine, 'pid': 2**22 + 1})
  assert not lease.ended({**mine, 'pid': 2**22 + 1, 'machine': 'another'})
  assert not lease.ended({**mine, 'pid': 2**22 + 1, 'namespace': 'another'})
