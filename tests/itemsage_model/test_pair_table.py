from __future__ import annotations

import numpy as np

from itemsage_model.pair_table import PairTable


def test_pairs_are_found_as_in_a_dictionary() -> None:
    random = np.random.default_rng(0)
    pairs = [(int(first), int(second)) for first, second in random.integers(0, 90, (5_000, 2))]
    pairs = list(dict.fromkeys([*pairs, (2**31 - 1, 2**31 - 1), (0, 2**31 - 1)]))
    known = {pair: number for number, pair in enumerate(pairs[::2])}
    table = PairTable(list(known), np.arange(len(known)), absent=-7)
    asked = np.array([*pairs, (-2, 5), (5, -2), (-2, -2)])
    expected = [known.get((int(first), int(second)), -7) for first, second in asked]
    assert table.find(asked[:, 0], asked[:, 1]).tolist() == expected


def test_an_empty_table_has_nothing() -> None:
    table = PairTable([], np.array([], np.int64), absent=-1)
    assert table.find(np.array([0, 3]), np.array([0, 4])).tolist() == [-1, -1]
    assert table.find(np.array([], np.int64), np.array([], np.int64)).tolist() == []
