"""`python -m evaluate`: see `python -m evaluate --help` and the README."""

import sys

from common.entry import run_command
from evaluate.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
