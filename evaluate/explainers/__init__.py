"""Explainers: from a model, images and targets to saliency maps. One module each, found by name.

Defaults follow the authors' code where there is one; where they do not, or others compute another map under the same
name, the docstring says how far apart the two are.
"""

from evaluate.explainers.explainer import Explainer
from evaluate.explainers.registry import EXPLAINERS, with_warning
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.query import Query

__all__ = ["EXPLAINERS", "Explainer", "MicroBatch", "Query", "with_warning"]
