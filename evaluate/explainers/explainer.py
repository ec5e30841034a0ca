"""What an explainer is: a function from a network's features and gradients, or from the whole question, to maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from evaluate.named import Named
from evaluate.network.query import Query

Family = Literal["gradient", "image gradient", "perturbation", "optimisation", "control"]
"""gradient: from the shared pass at the layer; image gradient: a pass of its own through the whole network."""

SIGNED = {"relu": False}
SUM = {"reduce": "sum"}


@dataclass(frozen=True)
class Explainer(Named):
    """One explainer; `function` takes features and gradients (family `gradient`) or a `Query`."""

    family: Family
    raw: dict[str, Any] = field(default_factory=dict)
    """Parameters that give the signed, unscaled map."""
    at_layer: bool = True
    """Whether it looks at the explained layer."""
    verified: bool = True
    needs: tuple[Literal["human"], ...] = ()
    """What it takes beside model and image: human maps of other images."""
    given: ClassVar[frozenset[str]] = frozenset({"features", "gradients", "query"})

    def __call__(self, query: Query, **parameters: Any) -> Tensor:
        """Saliency (B, h, w) at the layer's or the image's resolution."""
        if self.family == "gradient":
            return self.function(query.features, query.gradients, **parameters)
        return self.function(query, **parameters)
