"""Measure a checkpoint: explainers, alignment with human maps, statistics, reports.

`evaluate.explain(model, images, targets, methods)` gives saliency maps; it is loaded when first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.explainers.explain import explain

__all__ = ["explain"]


def __getattr__(name: str) -> Any:
    """Load `explain` only when it is used: importing the package alone stays quick."""
    if name == "explain":
        from evaluate.explainers.explain import explain

        return explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
