"""`python -m evaluate explain`: arrays, pictures and a contact sheet of photographs; measures in a run."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from common.errors import UserError
from evaluate.cli import main
from evaluate.metrics import Case, measure_case
from evaluate.photographs import contact_sheet
from evaluate.subjects import load_subject
from tests.evaluate.conftest import save_untrained


@pytest.fixture
def photographs(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for name, size in (("a", (90, 70)), ("b", (64, 120))):
        array = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    return paths


def test_explain_writes_maps_overlays_and_a_contact_sheet(checkpoint, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    methods = ["grad_cam", "conceptor_cam", "threshold_grad_cam:threshold=0.5"]
    main(["explain", *photographs, "--ckpt", str(checkpoint), "--explainer", *methods, "--out", str(out)])
    names = {path.name for path in out.iterdir()}
    files = ("grad_cam", "conceptor_cam", "threshold_grad_cam-threshold0.5")
    maps = {f"{p}-{m}.{s}" for p in "ab" for m in files for s in ("npy", "png")}
    assert names == maps | {"contact_sheet.png", "explained.json"}
    assert np.load(out / "a-threshold_grad_cam-threshold0.5.npy").min() == pytest.approx(0.5)
    assert np.load(out / "a-grad_cam.npy").shape == (64, 64)
    assert Image.open(out / "contact_sheet.png").size == (800, 2 * (200 + 43))  # titles of three lines
    printed = capsys.readouterr().out
    note = "reconstruction: not verified against the paper"
    assert f"conceptor_cam: {note}" in printed and printed.count("%") == 10
    assert Image.open(out / "b-conceptor_cam.png").text == {"Explainer": f"conceptor_cam; {note}"}
    told = json.loads((out / "explained.json").read_text())
    assert [entry["image"] for entry in told] == photographs
    assert [entry["note"] for entry in told[0]["maps"]] == ["", note, ""]
    for entry in told:
        assert entry["explained_class"] == entry["top5"][0]["class"] and len(entry["top5"]) == 5
        assert all(np.load(out / item["array"]).shape == (64, 64) for item in entry["maps"])


def test_explain_says_what_an_explainer_found_in_the_network(photographs, tmp_path, capsys):
    main(["explain", *photographs[:1], "--ckpt", "untrained", "--model", "timm:mobilenetv3_small_050", "--explainer",
          "guided_backprop", "--out", str(tmp_path)])  # fmt: skip
    note = "here ReLUs are 14 of 42 activation functions, the plain gradient passes hardswish (19), hardsigmoid (9)"
    told = json.loads((tmp_path / "explained.json").read_text())[0]["maps"][0]["note"]
    assert told.endswith(note) and f"guided_backprop: {told}" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "target"), [([], None), (["--target", "3"], 3)])
def test_the_contact_sheet_names_the_explained_class(checkpoint, photographs, tmp_path, monkeypatch, given, target):
    drawn = []
    monkeypatch.setattr("evaluate.photographs.contact_sheet", lambda rows: drawn.extend(rows) or contact_sheet(rows))
    main(["explain", *photographs, "--ckpt", str(checkpoint), *given, "--out", str(tmp_path / "out")])
    for row, entry in zip(drawn, json.loads((tmp_path / "out" / "explained.json").read_text()), strict=True):
        explained = entry["top5"][0]["class"] if target is None else target
        assert [title for title, _ in row] == [f"seen; explained: {explained}", "grad_cam"]  # the checkpoint names none


def test_photographs_are_explained_a_few_at_a_time(checkpoint, photographs, tmp_path, monkeypatch):
    """Maps are those of all at once; the class asked for is the one explained."""
    outs = [tmp_path / "all", tmp_path / "one"]
    for out, batch in zip(outs, (16, 1)):
        monkeypatch.setattr("evaluate.photographs.BATCH", batch)
        methods = ["grad_cam", "random", "input_gradient"]
        main(["explain", *photographs, "--ckpt", str(checkpoint), "--target", "3", "--out", str(out), "--explainer",
              *methods])  # fmt: skip
    for stem in "ab":
        for name in methods:
            first, second = (np.load(out / f"{stem}-{name}.npy") for out in outs)
            np.testing.assert_allclose(first, second, atol=1e-5 * np.abs(first).max())
    told = [json.loads((out / "explained.json").read_text()) for out in outs]
    assert [[entry["explained_class"] for entry in entries] for entries in told] == [[3, 3]] * 2


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["nowhere.png"], "no picture at nowhere.png"),
        (["a.png", "b/a.png"], "same name"),
        (["{a}", "--target", "99"], "classes 0 to 11"),
        (["{a}", "--explainer", "grad_camm"], "did you mean grad_cam"),
    ],
)
def test_explain_says_what_is_wrong(arguments, message, checkpoint, photographs, tmp_path):
    arguments = [a.format(a=photographs[0]) for a in arguments]
    with pytest.raises(UserError, match=message):
        main(["explain", *arguments, "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")])


def test_measures_of_a_run_equal_those_asked_for_directly(tmp_path, capsys):
    folder = save_untrained(tmp_path / "net", "demo")
    measures = ["average_drop", "insertion:step=512", "pointing_game"]
    main(["--ckpt", str(folder), "--data", "scenes", "--limit", "6", "--explainer", "grad_cam", "fake_cam",
          "--metric", *measures, "--out", str(tmp_path / "out"), "--workers", "0"])  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "per_image.parquet").to_pylist()
    assert len(table) == 12
    subject = load_subject(str(folder))
    from evaluate import explain
    from evaluate.data import ScenesData, load_batches

    data = ScenesData(64)
    indices = [row["index"] for row in table if row["explainer"] == "grad_cam"]
    batch = next(load_batches(data, subject.transform, indices, 6, 0))
    images = subject.transform.normalise(batch.pixels)
    maps = explain(subject.model, images, batch.labels, ["grad_cam"], size="own", transform=subject.transform)
    case = Case(subject.model, images, maps["grad_cam"], batch.labels, transform=subject.transform, boxes=batch.boxes)
    expected = measure_case(case, measures)
    rows = [row for row in table if row["explainer"] == "grad_cam"]
    for name in measures:
        found = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        torch.testing.assert_close(found, expected[name].values.double(), rtol=1e-4, atol=1e-4)
    assert len(rows[0]["insertion:step=512 detail"]) == 9
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores[0]["measures"]["insertion:step=512"]["settings"]["step"] == 512
    assert scores[0]["measures"]["average_drop"]["better"] == "lower"
    assert scores[0]["explainer_notes"] == {"fake_cam": "control: hides nothing"}
    assert (tmp_path / "out" / "figures" / "insertion_step_512-net.png").exists()
    assert "average_drop (lower is better)" in capsys.readouterr().out


def test_a_measure_that_the_data_cannot_serve_is_refused(checkpoint, clickme_root, tmp_path):
    with pytest.raises(UserError, match="needs objects"):
        main(["--ckpt", "untrained", "--model", "timm:resnet18", "--data-root", str(clickme_root),
              "--metric", "pointing_game", "--out", str(tmp_path), "--workers", "0"])  # fmt: skip
