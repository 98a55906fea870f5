"""Two named sets of sizes: the paper's, and one that trains in minutes on two cores."""

from __future__ import annotations

from schemas.settings import FeatureSettings, ModelSettings


def paper() -> tuple[ModelSettings, FeatureSettings]:
    """The paper's sizes: width 512, one block, 100,000 x 256 hash table, vocabulary of 1,264,000.

    Source: ItemSage sections 3.1-3.2. Assumed: head width 1,024 (not legible in Figure 3).
    """
    return ModelSettings(), FeatureSettings()


def demo() -> tuple[ModelSettings, FeatureSettings]:
    """The demo's sizes: every part of the paper's model, narrower."""
    model = ModelSettings(width=256, heads=8, feed_forward_width=512, head_width=512, hash_rows=10_000)
    return model, FeatureSettings(char_trigrams=10_000, word_unigrams=10_000, word_bigrams=20_000)
