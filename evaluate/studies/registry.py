"""Every study by the name people type. Another one is a file here with its `ENTRIES`, and a line below."""

from __future__ import annotations

from evaluate.named import Registry, entries_of
from evaluate.studies.study import Study

_FILES = ("paper",)

STUDIES = Registry("study", entries_of("evaluate.studies", _FILES, Study))
"""Every study by the name people type."""
