"""Processes that load batches: how many there may be, and the error when one of them dies."""

from __future__ import annotations

import signal

MOST = 256
"""Loader processes of one training or evaluating process; more would stop the machine before they read anything."""


def died(error: BaseException) -> str | None:
    """What a dead loader process means, where `error` tells of one; None for other errors.

    torch raises it at whatever line the main process has come to, and again as the other loader processes end; after
    this call it does not.
    """
    if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader worker"):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    cause = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
    what = str(cause).partition(". ")[0]
    return f"a loader's process died ({what}); killed: memory ran out, bus error: shared memory did"
