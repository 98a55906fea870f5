"""[search_text]: what no training can go by is refused when the settings are read."""

from __future__ import annotations

from math import inf

import pytest
from pydantic import ValidationError

from schemas.settings.search_text import SearchTextSettings


@pytest.mark.parametrize("name", ["learning_rate", "max_pair_weight", "distillation"])
def test_infinite_numbers_are_refused(name: str) -> None:
    SearchTextSettings.model_validate({name: 1.0})
    with pytest.raises(ValidationError, match=rf"{name}\s+Input should be a finite number"):
        SearchTextSettings.model_validate({name: inf})


def test_a_kind_is_named_once() -> None:
    with pytest.raises(ValidationError, match="each once"):
        SearchTextSettings(query_kinds=("search", "search"))
    with pytest.raises(ValidationError, match="at least one kind"):
        SearchTextSettings(query_kinds=())
