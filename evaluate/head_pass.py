"""The one pass of the explainers, under the name the runner knows; see `evaluate.explainers.passes`."""

from evaluate.explainers.passes import Activations, head_pass

__all__ = ["Activations", "head_pass"]
