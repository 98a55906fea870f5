"""Who reads which rows of an epoch, in what order: pure functions over file lists, so that properties can be tested.

A table is a list of files of known row counts. In every epoch each row belongs to exactly one rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """One rank's part of one epoch of a table.

    Attributes:
        files: Indices of the files to read, in order.
        stride: Of each file, the rows at positions `offset, offset + stride, ...` belong to the rank.
        offset: See `stride`.
        rows: How many rows that makes.
    """

    files: tuple[int, ...]
    stride: int
    offset: int
    rows: int


def epoch_seed(seed: int, stream: int, epoch: int) -> int:
    """A positive 31-bit seed for one epoch of one stream (Petastorm takes 0 for "no seed")."""
    return int(np.random.SeedSequence((seed, stream, epoch)).generate_state(1)[0] >> 1) or 1


def share_of_epoch(file_rows: list[int], rank: int, ranks: int, seed: int) -> Share:
    """The files, or rows of files, that a rank reads in one epoch.

    Files are dealt anew in every epoch: shuffled by the seed, then each to the rank with the fewest rows so far.
    Where there are fewer files than ranks, all ranks read all files and take every `ranks`-th row.

    Args:
        file_rows: Row count of each file.
        rank: This rank, from 0.
        ranks: Number of ranks.
        seed: Seed of the epoch, equal on all ranks.

    Returns:
        The rank's share. Over all ranks the shares hold every row exactly once.
    """
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(file_rows))]
    if len(file_rows) < ranks:
        rows = sum(len(range(rank, count, ranks)) for count in file_rows)
        return Share(tuple(order), ranks, rank, rows)
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for file in order:
        poorest = min(range(ranks), key=lambda r: (totals[r], r))
        dealt[poorest].append(file)
        totals[poorest] += file_rows[file]
    return Share(tuple(dealt[rank]), 1, 0, totals[rank])
