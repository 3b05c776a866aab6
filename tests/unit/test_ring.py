"""The window of a ring: which chunks are wanted, where a group begins, who is set apart."""

import time

from vitlab.config import choice
from vitlab.data.order import Crops, pixel_bytes, window_for
from vitlab.data.ring import APART, EXPECTED, FREE, JOINED, NEXT, STATE, WANTED, Ring


def test_the_window_is_four_batches_and_its_memory_is_stated():
    assert window_for(1024, 10**6) * 32 == 4096 and window_for(32, 10**6) * 32 == 1024
    assert window_for(32, 64) == 4 and window_for(1, 1) == 2
    assert pixel_bytes(1024, 224) == 1024 * 3 * 224**2


def bare_ring(members, window=4):
    data = choice("dataset", "digits")
    ring = Ring(Crops(data, 8, "bicubic", 1, 0), 320, members, window)
    ring.facts[1] = 1  # open
    return ring


def test_the_window_moves_with_the_slowest_joined_member():
    ring = bare_ring(3)
    ring.members[:, STATE] = JOINED, JOINED, APART
    ring.members[:, NEXT], ring.members[:, 2] = (5, 6, 0), (8, 99, 99)
    assert ring._wanted().tolist() == [5, 6, 7, 8]
    ring.members[0, STATE] = FREE
    assert ring._wanted().tolist() == [6, 7, 8, 9]
    assert not ring.join(2, 5) and ring.join(2, 6), "behind the others it would hold them up"
    ring.members[1:, STATE] = APART
    assert ring._wanted().tolist() == [] and ring.join(2, 50), "where nobody is, it begins the window"


def test_a_group_begins_where_most_of_it_is():
    ring = bare_ring(4)
    ring.facts[1] = 0
    ring.members[:, STATE], ring.members[:, NEXT], ring.members[:, 2] = JOINED, (20, 0, 21, 90), 100
    ring.members[1, STATE] = EXPECTED
    assert ring.claim(0) is None, "one has not begun"
    ring.members[1, STATE] = JOINED
    assert ring.claim(0) == (0, 20)
    assert ring.members[:, STATE].tolist() == [JOINED, APART, JOINED, APART]


def test_the_slowest_is_set_apart_once_others_have_waited_longer_than_patience():
    ring = bare_ring(2, window=2)
    ring.members[:, STATE], ring.members[:, NEXT], ring.members[:, 2] = JOINED, (0, 2), 10
    assert [ring.claim(0), ring.claim(0), ring.claim(0)] == [(0, 0), (1, 1), None]
    ring.patience = 0.05
    for _ in range(8):
        time.sleep(0.02)
        assert ring.claim(0) is None
    assert ring.state_of(0) == JOINED, "nobody waits for it"
    ring.members[1, WANTED] = 2
    ring.claim(0)
    for _ in range(8):
        time.sleep(0.02)
        ring.claim(0)
    assert ring.state_of(0) == APART and ring.state_of(1) == JOINED
