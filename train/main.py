"""`accelerate launch train/main.py recipe=NAME [key=value ...]`; without a recipe it lists them. See the README."""

import sys
from pathlib import Path

# A script's own folder comes first on the import path; the repository root takes its place, so that
# `import train` and `import common` work uninstalled and no module here can hide a library.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.entry import quit_on_interrupt, run_command  # noqa: E402

quit_on_interrupt()
from train.run import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command(main))
