"""`python -m evaluate`: see `python -m evaluate --help` and the README."""

import sys

from common.entry import quit_on_interrupt, run_command

quit_on_interrupt()
from evaluate.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command(main))
