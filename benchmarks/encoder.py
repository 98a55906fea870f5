"""Rows 1 and 2: the folded encoder against `nn.TransformerEncoderLayer` with the same weights.

One layer at the paper's sizes, 20 images + 12 texts + [CLS], 40 % of the slots missing, two threads. Forward as in
scoring (constants folded once, no gradient), forward and backward as in training (folded in every step; the texts'
vectors get gradients too, as the hash tables need them). In bfloat16 the scoring weights are bfloat16; training is
autocast over float32 weights.

    python -m benchmarks.encoder [--rounds N] [--small]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contest import Contender, Row, Turn, compete, judge, repeat, require
from benchmarks.plain_encoder import ClsQueryEncoder, PlainEncoder
from benchmarks.report import Options, main, print_outcome
from itemsage_model.encoders.encoder import Encoder, Tokens
from itemsage_model.encoders.precision import bfloat16_gain
from schemas.presets import paper
from schemas.tables import EMBEDDING_DIM

SLOTS = {"text": 12, "images": 20}
MASKS = {"40 % missing": 0.6, "none missing": 1.1, "all missing": -0.1, "few there": 0.05}
"""Share of the slots that hold a feature."""

FOLDED, PLAIN, CLS_QUERY = "folded", "nn.TransformerEncoderLayer", "query at [CLS] only"
_KINDS: dict[str, Callable[[Encoder], nn.Module]] = {
    FOLDED: lambda encoder: encoder,
    PLAIN: PlainEncoder,
    CLS_QUERY: ClsQueryEncoder,
}


def rows(options: Options) -> Iterator[Row]:
    """Check that all compute the same, then time them, in float32 and in bfloat16."""
    check_outputs()
    check_gradients()
    items = {"float32": options.choose(256, 16), "bfloat16": options.choose(256, 16)}
    if bfloat16_gain(torch.device("cpu")) < 1:
        print("this CPU multiplies bfloat16 no faster than float32: 16 items a batch there, as it takes long")
        items["bfloat16"] = 16
    for number, work, bar in (("1", forward_turn, 15.0), ("2", training_turn, 12.0)):
        name = "encoder forward" if number == "1" else "encoder forward + backward"
        for precision in ("float32", "bfloat16"):
            contenders = [Contender(kind, work, (kind, precision, items[precision])) for kind in _KINDS]
            outcome = compete(contenders, options.rounds or 6)
            print_outcome(f"{name}, {precision}, two threads, {items[precision]} items a batch", "items", outcome)
            for kind in (PLAIN, CLS_QUERY):
                is_judged = precision == "float32" and kind == PLAIN
                ratios = outcome.ratios(FOLDED, kind)
                yield judge(number, f"{name}, {precision}", kind, ratios, at_least=bar if is_judged else None)


def make_encoder() -> Encoder:
    """An encoder of the paper's sizes, its biases and norms away from their trivial start."""
    torch.manual_seed(0)
    sizes, _ = paper()
    encoder = Encoder(
        dict.fromkeys(SLOTS, EMBEDDING_DIM),
        width=sizes.width,
        layers=1,
        heads=sizes.heads,
        feed_forward_width=sizes.feed_forward_width,
        head_width=sizes.head_width,
        dim=EMBEDDING_DIM,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def make_sequence(items: int, share_present: float = 0.6) -> dict[str, Tokens]:
    """Random features with some slots missing."""
    torch.manual_seed(1)
    sequence = {}
    for name, slots in SLOTS.items():
        is_present = torch.rand(items, slots) < share_present
        sequence[name] = Tokens(torch.randn(int(is_present.sum()), EMBEDDING_DIM), is_present)
    return sequence


def forward_turn(kind: str, precision: str, items: int) -> Turn:
    """Scoring: frozen weights, everything that can be is computed beforehand."""
    torch.set_num_threads(2)
    dtype = getattr(torch, precision)
    encoder = make_encoder().eval().requires_grad_(False)
    fold = encoder.fold().to(dtype) if kind == FOLDED else None
    model, sequence = _KINDS[kind](encoder).eval().to(dtype), cast(make_sequence(items), dtype)

    def score() -> None:
        with torch.inference_mode():
            model(sequence, fold)

    return lambda: repeat(score, items)


def training_turn(kind: str, precision: str, items: int) -> Turn:
    """Training: folds, forward and backward to every parameter and to the texts' vectors."""
    torch.set_num_threads(2)
    model, sequence = _KINDS[kind](make_encoder()), make_sequence(items)
    sequence["text"].features.requires_grad_()
    target = torch.randn(items, EMBEDDING_DIM)

    def learn() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            vectors = model(sequence)
        (vectors.float() * target).sum().backward()
        model.zero_grad(set_to_none=True)
        sequence["text"].features.grad = None

    return lambda: repeat(learn, items)


def check_outputs() -> None:
    """Equal outputs within 1e-5 in float32, whatever is missing."""
    encoder = make_encoder().eval().requires_grad_(False)
    fold = encoder.fold()
    others = {kind: make(encoder).eval() for kind, make in _KINDS.items() if kind != FOLDED}
    for name, share in MASKS.items():
        sequence = make_sequence(64, share)
        with torch.inference_mode():
            folded = encoder(sequence, fold)
            for kind, other in others.items():
                difference = float((folded - other(sequence)).abs().max())
                require(difference <= 1e-5, f"{name}: {kind} differs by {difference:.1e}")
    print(f"outputs agree within 1e-05 with {', '.join(MASKS)}")


def check_gradients() -> None:
    """Equal gradients of every parameter: relative difference at most 1e-4 in float32, 1e-9 in float64."""
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        encoder = make_encoder().to(dtype)
        plain = PlainEncoder(encoder)
        sequence = cast(make_sequence(32), dtype)
        target = torch.randn(32, EMBEDDING_DIM, dtype=dtype)
        for model in (encoder, plain):
            (model(sequence) * target).sum().backward()
        theirs = dict(plain.gradients())
        ours = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        require(theirs.keys() == ours.keys(), f"parameters {theirs.keys() ^ ours.keys()}")
        for name, gradient in ours.items():
            assert gradient is not None, name
            difference = float((gradient - theirs[name]).norm() / theirs[name].norm())
            require(difference <= most, f"gradient of {name} in {dtype} differs by {difference:.1e}")
        print(f"gradients in {dtype}: {len(ours)} parameters agree within {most:g}")


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor of a structure in another precision."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: cast(part, dtype) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(cast(getattr(value, field.name), dtype) for field in fields(value)))
    return value


if __name__ == "__main__":
    main("benchmarks.encoder")
