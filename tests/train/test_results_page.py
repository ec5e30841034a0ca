"""docs/results.md names every file and key of a training run."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.results_page import check_files, check_keys, described


def test_files_and_keys_of_a_run_are_on_the_page(train_here: Callable[..., Path]) -> None:
    run = train_here("recipe=demo_dcls", "smoke=true", "data.image_size=32", "data.eval_size=32", "threads=1",
                     "ema.decay=0.5", "positions.repulsion=true", "positions.repulsion_from_epoch=0",
                     "log.tensorboard=true")  # fmt: skip
    assert set(described("Files of a training run")) - check_files(run, "Files of a training run") <= {".lock"}
    lines = [check_keys(json.loads(line), "Keys of metrics.jsonl") for line in (run / "metrics.jsonl").open()]
    assert set.union(*lines) == set(described("Keys of metrics.jsonl"))
    for name, path in (
        ("summary.json", run / "summary.json"),
        ("published.json", run / "published.json"),
        ("state.json", next(run.glob("snapshots/*/state.json"))),
    ):
        assert check_keys(json.loads(path.read_text()), f"Keys of {name}") == set(described(f"Keys of {name}")), name
