"""What a tower is, and what its spec is: all that trainer, optimiser, checkpoints and model files know of a model.

A tower learns one side of a (query, item) pair against vectors of the other side that are frozen or learned elsewhere:
an item tower the items, a query tower the queries. The losses do not care which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from itemsage_model.data.batch import ItemBatch, PairBatch
from schemas.elements import SizedElement


@runtime_checkable
class Tower(Protocol):
    """A model that embeds one side of a batch; an `nn.Module` that has these besides.

    Attributes:
        lookup_tables: Names of the parameters that are looked up by id. They have a learning rate of their own, and
            are not decayed: most of their rows do not take part in a step.
        learning_rate_factors: Parameter -> factor of its learning rate, for those that should learn faster than others.
    """

    lookup_tables: ClassVar[frozenset[str]]
    learning_rate_factors: ClassVar[dict[str, float]]

    def inputs(self, batch: PairBatch) -> Any:
        """What of a batch the tower embeds."""

    def __call__(self, inputs: Any) -> Float[Tensor, "row dim"]:
        """Vectors of unit length of what `inputs` returned."""

    def sides(
        self, embedded: Float[Tensor, "row dim"], batch: PairBatch
    ) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "item dim"]]:
        """The query vector of each pair and the vector of each of the batch's items, one of them just embedded."""

    def query_vectors(self, batch: PairBatch) -> Float[Tensor, "pair dim"]:
        """The query vector of each pair, as `sides` has it: what validation compares with `item_vectors`."""

    def item_vectors(self, items: ItemBatch) -> Float[Tensor, "item dim"]:
        """The vector of each item, as `sides` has it."""

    def temperature(self) -> Float[Tensor, ""]:
        """The scale of the cosine in the loss."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters, as `nn.Module` has them."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, as `nn.Module` has them."""

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers by name, as `nn.Module` has them."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Takes weights and buffers, as `nn.Module` does."""

    training: bool

    def train(self, mode: bool = True) -> Any:
        """Into training mode, or out of it, as `nn.Module` does."""

    def eval(self) -> Any:
        """Into evaluation mode, as `nn.Module` does."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Whether gradients are kept, as `nn.Module` has it."""

    def to(self, device: Any) -> Any:
        """Onto a device, as `nn.Module` has it."""


class TowerSpec(Protocol):
    """What one must know to read a tower's weights, and what its vectors may be compared with.

    Attributes:
        kind: What kind of tower it is; a model file says it, and is refused where another kind is wanted.
    """

    kind: ClassVar[str]

    @property
    def elements(self) -> Sequence[SizedElement]:
        """What the tower reads of an item."""

    def to_json(self) -> dict[str, Any]:
        """As plain values; part of the model's identity."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Any:
        """The inverse of `to_json`."""

    def build(self, *, seed: int = 1) -> Any:
        """A tower of this spec with fresh weights, the same for the same seed."""
