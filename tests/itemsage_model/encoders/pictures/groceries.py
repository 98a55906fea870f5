"""A head over the pictures of a supermarket, trained on products other than those that it is scored on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from itemsage_model.data.batch import ItemBatch, PairBatch
from itemsage_model.data.ragged import Ragged
from itemsage_model.encoders.picture_tower import PictureTowerSpec
from itemsage_model.serving.picture_scorer import head_vectors
from itemsage_model.training.early_stopping import EarlyStopping
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from itemsage_model.training.trainer import Trainer
from itemsage_model.training.validation import Recall
from schemas.settings import PictureHeadSettings, TrainSettings

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
SIZE = 64
"""Pairs of a step, and negatives."""


def halves(products: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Which pictures are of the first half of the products, drawn at random."""
    distinct, product = np.unique(products, return_inverse=True)
    is_first: npt.NDArray[np.bool_] = (np.random.default_rng(0).permutation(len(distinct)) % 2 == 0)[product]
    return is_first


def by_a_head(vectors: Vectors, products: npt.NDArray[np.str_], trained_on: Rows) -> Vectors:
    """All vectors by a head that learned from the pictures at `trained_on`: one product stands for one query.

    A quarter of these products choose the number of steps, by recall@10 of pairs, as the pipeline does; the base is
    step 0.
    """
    product = np.unique(products, return_inverse=True)[1]
    is_measured = product[trained_on] % 4 == 0
    fit, measured = trained_on[~is_measured], trained_on[is_measured]
    own = PictureHeadSettings(batch_size=SIZE, negative_count=SIZE, steps=100, validate_every=5)
    settings = own.train_settings(TrainSettings())
    tower = PictureTowerSpec("groceries", vectors.shape[1], own.width, 1, own.temperature, 100.0).build(seed=1)
    halves_of = vectors.astype(np.float16)
    tower.read_pictures(np.arange(len(vectors)), Ragged(halves_of, np.ones(len(vectors), np.int64)))
    tower.head.measure(torch.from_numpy(vectors[fit]))
    trainer = Trainer(tower, Objective(own.loss_settings, CountMinSketch(2, 1 << 12), SIZE / len(fit)), settings, 1)
    stopping = EarlyStopping(own.patience, 0.0, settings.steps)

    def is_enough() -> bool:
        found = recall(head_vectors(tower.head, vectors[measured]), product[measured])
        return stopping.add(Recall(trainer.step, found, float("nan")), tower)

    is_enough()
    trainer.fit(_batches(product, fit), lambda _: None, lambda: None, is_enough)
    tower.load_state_dict(stopping.weights)
    return head_vectors(tower.head, vectors)


def recall(vectors: Vectors, product: npt.NDArray[Any]) -> float:
    """Recall@10 of all pairs of pictures of one product."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    rank = (-scores).argsort(axis=1).argsort(axis=1)
    is_pair = (product[:, None] == product) & ~np.eye(len(product), dtype=bool)
    return float((rank < 10)[is_pair].mean())


def _batches(product: npt.NDArray[Any], rows: Rows) -> Iterator[PairBatch]:
    """Pairs of two pictures of one product, for ever; the product is the query."""
    random = np.random.default_rng(1)
    others = {row: rows[(product[rows] == product[row]) & (rows != row)] for row in rows.tolist()}
    while True:
        shown = random.choice(rows, SIZE)
        found = np.array([random.choice(others[row]) for row in shown.tolist()])
        keys, place = np.unique(np.concatenate([found, random.choice(rows, SIZE)]), return_inverse=True)
        yield PairBatch(
            ItemBatch({}), torch.from_numpy(keys), torch.from_numpy(place[:SIZE]),
            torch.from_numpy(np.unique(place[SIZE:])), torch.empty(SIZE, 0), torch.from_numpy(product[shown]),
            torch.from_numpy(shown), torch.ones(SIZE), torch.zeros(SIZE, dtype=torch.long),
        )  # fmt: skip
