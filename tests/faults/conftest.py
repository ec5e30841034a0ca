"""Fixtures of the evaluation's tests."""

from tests.evaluate.conftest import checkpoint, clickme_root

__all__ = ["checkpoint", "clickme_root"]
