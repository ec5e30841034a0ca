"""The error that users see when `torch.compile` fails."""

from __future__ import annotations

from torch._dynamo.exc import BackendCompilerFailed

from common.errors import UserError, first_line


def compiler_failed(error: BackendCompilerFailed, advice: str) -> UserError:
    """One line in the place of the compiler's traceback.

    Args:
        error: as torch raised it.
        advice: how to go on without compiling.
    """
    cause = error.inner_exception
    return UserError(
        f"torch.compile failed: {type(cause).__name__}, {first_line(cause)}. It needs a C++ compiler and Python's "
        f"headers, and on a GPU Triton; {advice}"
    )
