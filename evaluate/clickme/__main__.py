"""`python -m evaluate.clickme download|convert`: see `--help`."""

import sys

if __name__ == "__main__":
    from common.entry import quit_on_interrupt

    quit_on_interrupt()

from common.entry import run_command
from evaluate.clickme.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
