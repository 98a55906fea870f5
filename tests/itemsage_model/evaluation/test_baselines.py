"""What a model is compared with: the sum of an item's images."""

from __future__ import annotations

import numpy as np

from itemsage_model.evaluation.baselines import sum_of_images
from tests.itemsage_model.factories import packed_items


def test_the_sum_of_images_is_that_of_each_item_alone():
    images = packed_items(12)["image_embeddings"]
    sums = sum_of_images(images.values, images.counts)
    assert (images.counts == 0).any()
    first = 0
    for row, count in enumerate(images.counts):
        total = images.values[first : first + count].astype(np.float64).sum(axis=0)
        length = np.linalg.norm(total)
        np.testing.assert_allclose(sums[row], total / length if length else total, atol=1e-5)
        first += count
    none = packed_items(3, most_images=0)["image_embeddings"]
    assert not sum_of_images(none.values, none.counts).any()
