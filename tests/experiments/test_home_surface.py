"""How the home surface is measured: which pairs count, and what each system shows."""

from __future__ import annotations

from functools import partial

import numpy as np

from experiments.home_surface import ExactIndex, User, World, hits, home, last_closeup, popularity, recall, report
from retrieval.home import Engaged, HomeSettings

IDS = [f"i{n:02}" for n in range(40)]
VECTORS = dict(zip(IDS, np.eye(40, dtype=np.float32), strict=True))
NEXT = {f"i{n:02}": np.eye(40, dtype=np.float32)[(n + 1) % 40] for n in range(40)}
"""Whoever takes an item takes the one with the next number then."""


def world(users: int = 30) -> World:
    people = [
        User((Engaged(IDS[n % 20], 30), Engaged(IDS[n % 20 + 3], 1)), frozenset({IDS[n % 20 + 1], IDS[n % 20]}))
        for n in range(users)
    ]
    index = ExactIndex(np.array(IDS, object), np.stack([*VECTORS.values()]))
    return World(index, VECTORS, NEXT, people, {0: IDS, 28: IDS[::-1]})


def test_a_user_s_own_items_count_among_all_items_alone() -> None:
    some = world()
    assert [len(one) for one in hits(some, lambda _: [], is_new=True)] == [1] * 30
    assert [len(one) for one in hits(some, lambda _: [], is_new=False)] == [2] * 30
    assert recall(hits(some, lambda user: sorted(user.own), is_new=False)) == 0.5


def test_the_home_surface_finds_what_follows_on_an_earlier_item_and_the_last_one_s_closeup_does_not() -> None:
    some, how = world(), HomeSettings(sharpness=30)
    (user,) = some.users[:1]
    assert set(home(some, user, how, by_closeup=True)[:2]) == {"i01", "i04"}
    assert last_closeup(some, user, leave_out=True)[0] == "i04"
    assert popularity(some, user, 0, leave_out=True)[:3] == ["i01", "i02", "i04"]
    assert popularity(some, user, 28, leave_out=False)[0] == "i39"
    assert recall(hits(some, partial(home, some, how=how, by_closeup=True), is_new=True)) == 1


def test_the_report_says_pairs_users_and_differences() -> None:
    lines = report(world(), True, (HomeSettings(sharpness=30), True, 0))
    assert lines[0] == "items new to the user: 30 pairs of 30 users"
    assert lines[1].split()[:3] == ["home", "recall@10", "1.0000"]
    assert lines[-1].startswith("  home minus popularity: +0.")
