"""Which columns are no negatives of a row, and where each item stands first: pure functions of keys."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def same_query_mask(
    query_keys: Int[Tensor, "pair"],
    all_query_keys: Int[Tensor, "all_pairs"],
    all_positive: Int[Tensor, "all_pairs"],
    column_count: int,
) -> Bool[Tensor, "pair column"]:
    """For each row, the columns that are a positive of the same query anywhere in the batch, its own included.

    Args:
        query_keys: Queries of this rank's pairs.
        all_query_keys: Queries of all ranks' pairs.
        all_positive: Column of each of all ranks' pairs.
        column_count: Number of columns.
    """
    known, row_query = torch.unique(query_keys, return_inverse=True)
    if not len(known):
        return torch.zeros(0, column_count, dtype=torch.bool, device=query_keys.device)
    index = torch.searchsorted(known, all_query_keys).clamp_(max=len(known) - 1)
    is_known = known[index] == all_query_keys
    # [query, column], then one row a pair
    engaged = torch.zeros(len(known), column_count, dtype=torch.bool, device=query_keys.device)
    engaged[index[is_known], all_positive[is_known]] = True
    return engaged[row_query]


def same_item_mask(item_keys: Int[Tensor, "pair"], column_keys: Int[Tensor, "column"]) -> Bool[Tensor, "pair column"]:
    """For each row, the column that is the given item, such as the one the query shows.

    Args:
        item_keys: One item a row; 0 = none.
        column_keys: Items of the columns, distinct.
    """
    mask = torch.zeros(len(item_keys), len(column_keys), dtype=torch.bool, device=item_keys.device)
    if len(column_keys):
        ordered, order = column_keys.sort()
        index = torch.searchsorted(ordered, item_keys).clamp_(max=len(ordered) - 1)
        rows = ((ordered[index] == item_keys) & (item_keys != 0)).nonzero().squeeze(1)
        mask[rows, order[index[rows]]] = True
    return mask


def first_rows(keys: Int[Tensor, "row"], wanted: Int[Tensor, "column"]) -> Int[Tensor, "column"]:
    """Row of the first occurrence of each wanted key; every wanted key must be among `keys`.

    It merges copies: an item that two ranks encoded enters the loss once, with the first rank's vector.
    """
    ordered, order = keys.sort(stable=True)
    return order[torch.searchsorted(ordered, wanted)]
