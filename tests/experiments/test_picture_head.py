"""experiments/picture_head.py: the vector of a product."""

from __future__ import annotations

import numpy as np

from experiments.picture_head import means


def test_a_product_is_the_mean_of_its_pictures_directions() -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]], np.float32)
    found = means(vectors, np.array([2, 1, 0]))
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0, 1], [0, 0]], atol=1e-6)
