"""How commands end: 0 done; 2 what was asked for cannot be done, said in one line; 130 Ctrl-C; 1 a fault of ours."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from common.errors import UserError

# No permission, read-only, full, a file where a folder should be, or a folder that cannot be made.
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ENOENT,
)  # fmt: skip


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's main function and return its exit status.

    A `UserError` becomes one message on standard error, without a traceback, and status 2; with several ranks
    the first one speaks. So does what the file system refuses. Anything else that is raised is a fault of ours and
    passes through. Ctrl-C ends with 130.
    """
    try:
        return main() or 0
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        print(
            f"error: {error.filename}: {error.strerror}; check the place, its permissions and its free space",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
