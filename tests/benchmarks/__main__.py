"""`python -m tests.benchmarks [NAME ...]`: run benchmarks and put each one's table into its page, `results/NAME.md`.

A table stands between markers and is replaced when its benchmark runs again on the same kind of device; what is
written around the tables stays.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import traceback
from datetime import date
from pathlib import Path

from common.atomic import write_text
from tests.benchmarks.harness import device, machine

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def main() -> int:
    """Run the named benchmarks, or all of them."""
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        print(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        module = importlib.import_module(f"tests.benchmarks.bench_{name}")
        print(f"{module.TITLE} ...", flush=True)
        try:
            table = module.run()
        except Exception:  # the others are wanted all the same
            traceback.print_exc()
            failed.append(name)
            continue
        print(table)
        print(f"written to {put(name, module.TITLE, module.GOAL, table, RESULTS)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def put(name: str, title: str, goal: str, table: str, folder: Path) -> Path:
    """Place a benchmark's table in its page, beside those of other kinds of devices; gives the page."""
    page, key = folder / f"{name}.md", f"{name}-{device().type}"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n\n{goal}\n"
    command = shlex.join(["python", "-m", "tests.benchmarks", name])
    section = (
        f"<!-- {key} -->\nMeasured on {date.today()}: {machine()}. `{command}`. "
        f"Times are medians (quartiles) of alternating runs, in ms.\n\n{table}\n<!-- end {key} -->\n"
    )
    pattern = re.compile(rf"<!-- {re.escape(key)} -->.*?<!-- end {re.escape(key)} -->\n", re.DOTALL)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text}\n{section}"
    write_text(page, text)
    return page


if __name__ == "__main__":
    sys.exit(main())
