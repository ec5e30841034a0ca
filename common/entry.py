"""How commands end: 0 done; 2 what was asked for cannot be done, said in one line; 130 Ctrl-C; 1 a fault of ours."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.disk import refusal, told
from common.errors import UserError


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's main function and return its exit status.

    A `UserError` becomes one message on standard error, without a traceback, and status 2; with several ranks
    the first one speaks. So does what the file system refuses. The exception's notes follow. Anything else that is
    raised is a fault of ours and passes through. Ctrl-C ends with 130.
    """
    with _quiet_threads():
        try:
            return main() or 0
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":
                _tell(f"error: {error}", error)
            return 2
        except Exception as error:
            refused = refusal(error)
            if refused is None:
                raise
            _tell(f"error: {told(refused)}", error)
            return 2
        except KeyboardInterrupt as error:
            _tell("interrupted", error)
            return 130


def _tell(text: str, error: BaseException) -> None:
    print("; ".join([text, *getattr(error, "__notes__", ())]), file=sys.stderr)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """A thread that writes hands on what the disk refused, so it need not print that, too."""
    usual = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or refusal(args.exc_value) is None:
            usual(args)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = usual
