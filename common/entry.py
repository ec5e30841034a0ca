"""How commands end: exit code 0, 2 (a user's error), 130 (Ctrl-C) or 1 (a fault of ours), each in one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

from common.disk import refusal, told
from common.errors import UserError
from common.text import shown, without_tokens
from common.workers import died


def quit_on_interrupt() -> None:
    """End at once on Ctrl-C, until `run_command`: to be called before the imports that take seconds.

    Libraries turn a KeyboardInterrupt that meets them while they are imported into errors of their own.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's main function and return its exit status.

    A `UserError` becomes one message on standard error, without a traceback, and status 2; with several ranks
    the first one speaks. So does what the file system refuses, and a loader's process that died. The exception's notes
    follow. Anything else that is raised is a fault of ours and passes through. Ctrl-C ends with 130.
    """
    sys.excepthook = _show_fault
    with _quiet_threads():
        if signal.getsignal(signal.SIGINT) is _quit:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main() or 0
        except UserError as error:
            if _speaks():
                _tell(f"error: {error}", error)
            return 2
        except Exception as error:
            refused = refusal(error)
            what = told(refused) if refused else died(error)
            if what is None:
                raise
            _tell(f"error: {what}" if refused else f"error: {what}. Fewer workers need less of both", error)
            return 2
        except KeyboardInterrupt as error:
            _tell("interrupted", error)
            return 130


def _tell(text: str, error: BaseException) -> None:
    print(shown("; ".join([text, *getattr(error, "__notes__", ())])), file=sys.stderr)


def _show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(without_tokens("".join(traceback.format_exception(kind, error, trace))))


def _speaks() -> bool:
    """Whether this is the first of the ranks."""
    return os.environ.get("RANK", "0") == "0"


def _quit(number: int, frame: FrameType | None) -> NoReturn:
    if _speaks():
        os.write(2, b"interrupted\n")
    os._exit(130)


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
