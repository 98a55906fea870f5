"""The small graphs of the query side in ONNX, written node by node, and a transformer's, traced by torch.

Opset 17 and its IR version, so that onnxruntime since 1.17 runs them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from schemas.errors import SettingsError

_OPSET, _IR = 17, 8

Array = npt.NDArray[Any]


def lsa_graph(inverse_document_frequencies: Array, components: Array) -> bytes:
    """One text's tokens, each once, and how often it has each -> its vector [1, dimension].

    The sum of (1 + ln count) x idf x the token's row, over the length of those weights; then brought to length 1.
    """
    nodes = [
        _node("Gather", ["idf", "token"], "rarity"),
        _node("Log", ["count"], "log_count"),
        _node("Add", ["log_count", "one"], "repetition"),
        _node("Mul", ["rarity", "repetition"], "weight"),
        _node("ReduceL2", ["weight"], "length", keepdims=1),
        _node("Div", ["weight", "length"], "share"),
        _node("Unsqueeze", ["share", "first"], "row"),
        _node("Gather", ["components", "token"], "rows"),
        _node("MatMul", ["row", "rows"], "sum"),
        *_unit("sum", "vector", np.float32(1e-6)),
    ]
    constants = {
        "idf": inverse_document_frequencies, "components": components, "one": np.float32(1), "first": np.array([0]),
    }  # fmt: skip
    return _model({"token": (np.int64, ["token"]), "count": (np.float32, ["token"])}, nodes, constants, 1)


def scaled_graph(matrix: Array | None, threshold: float) -> bytes:
    """Vectors -> their product with a matrix, or themselves, brought to length 1; one no longer than that is zeros.

    In float64, as the batch job computes it.
    """
    product = [] if matrix is None else [_node("MatMul", ["exact", "matrix"], "product")]
    nodes = [
        _node("Cast", ["vector"], "exact", to=_type(np.float64)),
        *product,
        *_unit("product" if product else "exact", "scaled", np.float64(threshold)),
        _node("Cast", ["scaled"], "out", to=_type(np.float32)),
    ]
    constants = {} if matrix is None else {"matrix": matrix.astype(np.float64)}
    return _model({"vector": (np.float32, ["row", "dim"])}, nodes, constants)


def adapter_graph(learned: tuple[Array, Array] | None) -> bytes:
    """Frozen vectors q -> unit(q + q W + b), or q where nothing is learned; brought to length 1 before, zeros stay."""
    nodes = [
        _node("Cast", ["vector"], "exact", to=_type(np.float64)),
        *_unit("exact", "scaled", np.float64(1e-12)),
        _node("Cast", ["scaled"], "frozen", to=_type(np.float32)),
    ]
    constants = {}
    if learned is None:
        nodes.append(_node("Identity", ["frozen"], "out"))
    else:
        constants = dict(zip(("weight", "bias"), learned, strict=True))
        nodes += [
            _node("MatMul", ["frozen", "weight"], "mapped"),
            _node("Add", ["mapped", "bias"], "moved"),
            _node("Add", ["frozen", "moved"], "sum"),
            *_unit("sum", "adapted", np.float32(1e-12)),
            # What nothing is known of stays zero, whatever the bias.
            _node("ReduceL2", ["frozen"], "known_length", axes=[-1], keepdims=1),
            _node("Cast", ["known_length"], "is_known", to=_type(np.bool_)),
            _node("Cast", ["is_known"], "known", to=_type(np.float32)),
            _node("Mul", ["adapted", "known"], "out"),
        ]
    return _model({"vector": (np.float32, ["row", "dim"])}, nodes, constants)


class Projected(nn.Module):
    """A sentence-transformers model and its projection [model width, dimension], of token ids."""

    def __init__(self, model: nn.Module, projection: Array) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("projection", torch.from_numpy(np.ascontiguousarray(projection)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors of unit length of some texts; zeros where the projection keeps nothing."""
        found = self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
        product: Tensor = found @ self.projection  # type: ignore[operator]
        length = product.norm(dim=-1, keepdim=True)
        scaled: Tensor = product / length.clamp_min(1e-6) * (length > 1e-6)
        return scaled


def transformer_graph(model: nn.Module) -> bytes:
    """Token ids and their mask [text, token] -> vectors [text, dimension] of length 1, traced by torch's own exporter.

    Args:
        model: A text transformer, or a `Projected` model of another package.
    """
    _onnx()
    example = (torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long))
    axes = {0: "text", 1: "token"}
    content = io.BytesIO()
    with warnings.catch_warnings():
        # That it traces, and that another exporter, which needs a further package, is the newer one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), example, content, dynamo=False,  # type: ignore[arg-type]
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"], output_names=["out"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "out": {0: "text"}},
        )  # fmt: skip
    return content.getvalue()


def _onnx() -> Any:
    try:
        import onnx  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise SettingsError("to export queries needs an extra: pip install 'itemsage-open[onnx]'") from error
    return onnx


def _type(dtype: Any) -> int:
    kind: int = _onnx().helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return kind


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    return _onnx().helper.make_node(operator, list(inputs), [output], **attributes)


def _unit(vector: str, output: str, threshold: Any) -> list[Any]:
    """Rows scaled to length 1; zeros where a row is no longer than the threshold."""
    constant = _onnx().numpy_helper.from_array(np.array(threshold))
    return [
        _node("Constant", [], f"{output}_least", value=constant),
        _node("ReduceL2", [vector], f"{output}_length", axes=[-1], keepdims=1),
        _node("Max", [f"{output}_length", f"{output}_least"], f"{output}_divisor"),
        _node("Div", [vector, f"{output}_divisor"], f"{output}_divided"),
        _node("Greater", [f"{output}_length", f"{output}_least"], f"{output}_is_long"),
        _node("CastLike", [f"{output}_is_long", vector], f"{output}_long"),
        _node("Mul", [f"{output}_divided", f"{output}_long"], output),
    ]


def _model(
    inputs: dict[str, tuple[Any, list[str]]], nodes: list[Any], constants: dict[str, Any], rows: int | str = "row"
) -> bytes:
    """The graph's bytes; its output is that of the last node, float32 [rows, dim]."""
    helper, numpy_helper = _onnx().helper, _onnx().numpy_helper
    given = [helper.make_tensor_value_info(name, _type(kind), shape) for name, (kind, shape) in inputs.items()]
    output = helper.make_tensor_value_info(nodes[-1].output[0], _type(np.float32), [rows, "out_dim"])
    arrays = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "queries", given, [output], arrays)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="itemsage")
    made.ir_version = _IR
    _onnx().checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content
