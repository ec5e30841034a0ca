"""`make test-lowest`: prints the requirements of pyproject.toml, each at the lowest version it allows."""

import tomllib
from pathlib import Path


def lowest() -> list[str]:
    """Lines for `pip install -r`; what has no bound stays without."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [requirement.replace(">=", "==") for requirement in required]


if __name__ == "__main__":
    print("\n".join(lowest()))
