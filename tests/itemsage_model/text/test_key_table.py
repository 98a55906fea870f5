from __future__ import annotations

import numpy as np

from itemsage_model.text.key_table import KeyTable


def test_keys_are_found_as_in_a_dictionary() -> None:
    random = np.random.default_rng(0)
    keys = list(dict.fromkeys([*random.integers(0, 9_000, 5_000).tolist(), 2**63 - 1, 2**32 - 1, 2**32]))
    known = {key: number for number, key in enumerate(keys[::2])}
    table = KeyTable(np.array(list(known)), np.arange(len(known)), absent=-7)
    asked = np.array([*keys, -2, -(2**63)])
    assert table.find(asked).tolist() == [known.get(int(key), -7) for key in asked]


def test_an_empty_table_has_nothing() -> None:
    table = KeyTable(np.array([], np.int64), np.array([], np.int64), absent=-1)
    assert table.find(np.array([0, 3])).tolist() == [-1, -1]
    assert table.find(np.array([], np.int64)).tolist() == []
