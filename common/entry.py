"""How the commands end: 0 done; 2 what the user asked for cannot be done, said in one line; 1 a fault of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's main function and return its exit status.

    A `UserError` becomes one message on standard error, without a traceback, and status 2; with several ranks
    the first one speaks. Anything else that is raised is a fault of ours and passes through.
    """
    from common.errors import UserError

    try:
        return main() or 0
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
