"""docs/results.md names every file, column and key of an evaluation."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from evaluate.cli.main import main
from tests.results_page import check_files, check_keys, described

METRICS = ["insertion:step=2048", "complexity"]


@pytest.fixture(scope="module")
def out(checkpoint, tmp_path_factory):
    """Results that have all that the page tells of."""
    out = tmp_path_factory.mktemp("results")
    main(["--ckpt", f"a={checkpoint}", f"b={checkpoint}", "--data", "scenes", "--limit", "2", "--workers", "0",
          "--explainer", "grad_cam", "fake_cam", "--protocol", "paper", "aligned", "--metric", *METRICS, "--compare",
          "a", "b", "--precision", "bf16", "--out", str(out)])  # fmt: skip
    return out


def test_every_file_is_on_the_page(out):
    assert set(described("Files of an evaluation")) - check_files(out, "Files of an evaluation") <= {".lock"}


def test_columns_are_those_of_the_page_in_its_order(out):
    page = described("Columns of per_image.parquet")
    of_metrics = {name: page.pop(name)[0] for name in ("METRIC", "METRIC detail")}
    expected = {name: cells[0] for name, cells in page.items()}
    for name in METRICS:
        expected[name] = of_metrics["METRIC"]
        if "insertion" in name:
            expected[f"{name} detail"] = of_metrics["METRIC detail"]
    schema = pq.read_schema(out / "per_image.parquet")
    assert [(column.name, str(column.type)) for column in schema] == list(expected.items())
    with (out / "scores.csv").open() as file:
        assert next(csv.reader(file)) == list(described("Columns of scores.csv"))


def test_every_key_is_on_the_page_and_every_one_of_the_page_is_there(out):
    for name in ("scores.json", "comparisons.json", "run.json"):
        content = json.loads((out / name).read_text())
        found = [
            check_keys(values, f"Keys of {name}") for values in (content if isinstance(content, list) else [content])
        ]
        assert set.union(*found) == set(described(f"Keys of {name}"))


def test_a_key_that_is_not_on_the_page_is_noticed(out):
    score = json.loads((out / "scores.json").read_text())[0]
    with pytest.raises(AssertionError, match=r"data\.colour is not on the page"):
        check_keys({**score, "data": {**score["data"], "colour": "red"}}, "Keys of scores.json")
