"""The command `python -m evaluate` and its subcommands."""
