"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real input, which is not part of the repository; tests that need it skip without it."""
    default = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("DCLS_ALIGN_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data; DCLS_ALIGN_SHARED names the folder that holds data/")
    return folder
