"""What the model adds to the frozen query vectors: a linear map a kind, a vector a known query; no change at first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.encoders.identity import KeyIdentity
from schemas.errors import InputError

START_BETA = 0.3
"""From 0 the identities would not learn at first, their gradient being multiplied by beta."""


class QueryAdapter(nn.Module):
    """Query vector = unit(q + q W + b + beta E[key]): W and b of the query's kind and E all zero at first.

    (Or W and E as `training.start` gives them.) A query without training pairs has no E: the map alone moves it.
    All kinds lie in one parameter: it has a gradient on every rank, whichever kinds a batch holds.

    Args:
        task_kinds: Query kind of each task, in the order of the tasks.
        dim: Length of a query vector.
        identity: E, of which this adapter makes zeros; None = no query is known by its key.
    """

    kind_of_task: Tensor

    def __init__(self, task_kinds: Sequence[str], dim: int, identity: KeyIdentity | None = None) -> None:
        super().__init__()
        self.kinds = sorted(set(task_kinds))
        self.weight = nn.Parameter(torch.zeros(len(self.kinds), dim, dim))
        self.bias = nn.Parameter(torch.zeros(len(self.kinds), dim))
        of_task = torch.tensor([self.kinds.index(kind) for kind in task_kinds], dtype=torch.long)
        self.register_buffer("kind_of_task", of_task, persistent=False)
        self.identity = identity
        if identity is not None:
            nn.init.zeros_(identity.table)
            self.beta = nn.Parameter(torch.tensor(START_BETA))

    def number_of(self, kind: str) -> int:
        """The place of a kind in `kinds`.

        Raises:
            InputError: no task that the model was trained on has queries of this kind.
        """
        if kind not in self.kinds:
            raise InputError(
                "model",
                "query_adapter",
                expected=f"one trained on {kind} queries",
                found=f"one trained on {', '.join(self.kinds)}",
                cure="Put the tasks back with which the model was trained, or run train again with these.",
            )
        return self.kinds.index(kind)

    def forward(
        self, queries: Float[Tensor, "query dim"], kind: Int[Tensor, "query"], query_key: Int[Tensor, "query"]
    ) -> Float[Tensor, "query dim"]:
        """Adapt frozen query vectors, in float32; unit length.

        Args:
            queries: Frozen vectors.
            kind: Place of each query's kind in `kinds`.
            query_key: Identity of each query.
        """
        with torch.autocast(queries.device.type, enabled=False):
            adapted = queries
            for number in range(len(self.kinds)):
                rows = (kind == number).nonzero().squeeze(1)
                adapted = adapted.index_add(0, rows, queries[rows] @ self.weight[number] + self.bias[number])
            if self.identity is not None:
                rows = self.identity.is_present(query_key).nonzero().squeeze(1)
                adapted = adapted.index_add(0, rows, self.beta * self.identity(query_key[rows]))
            return F.normalize(adapted, dim=-1)
