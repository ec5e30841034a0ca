"""`python -m evaluate explain`: arrays, pictures and a contact sheet of photographs; measures in a run."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import evaluate.cli.explain as photographs_module
from common.checkpoint import save_checkpoint
from common.checkpoint_config import CheckpointConfig
from common.data.folders import names_of_classes
from common.errors import UserError
from common.models.zoo import create_model, lookup
from evaluate.cli.explain import contact_sheet
from evaluate.cli.explain_arguments import distinct_names, find_class, find_images
from evaluate.cli.main import main
from evaluate.metrics.case import Case
from evaluate.metrics.registry import measure_case
from evaluate.network.subject import load_subject
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
    assert names == maps | {"contact_sheet.png", "explained.json", "run.json"}
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
    monkeypatch.setattr("evaluate.cli.explain.contact_sheet", lambda rows: drawn.extend(rows) or contact_sheet(rows))
    main(["explain", *photographs, "--ckpt", str(checkpoint), *given, "--out", str(tmp_path / "out")])
    for row, entry in zip(drawn, json.loads((tmp_path / "out" / "explained.json").read_text()), strict=True):
        explained = entry["top5"][0]["class"] if target is None else target
        assert [title for title, _ in row] == [f"seen; explained: {explained}", "grad_cam"]  # the checkpoint names none


def test_photographs_are_explained_a_few_at_a_time(checkpoint, photographs, tmp_path, monkeypatch):
    """Maps are those of all at once; the class asked for is the one explained."""
    outs = [tmp_path / "all", tmp_path / "one"]
    for out, batch in zip(outs, (16, 1)):
        monkeypatch.setattr("evaluate.cli.explain.BATCH", batch)
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
        (["{a}", "--target", "99"], "classes 0 to 11"),
        (["{a}", "--explainer", "grad_camm"], "did you mean grad_cam"),
        (["{a}", "--explainer", "other_human"], "other_human needs human maps"),
    ],
)
def test_explain_says_what_is_wrong(arguments, message, checkpoint, photographs, tmp_path):
    arguments = [a.format(a=photographs[0]) for a in arguments]
    with pytest.raises(UserError, match=message):
        main(["explain", *arguments, "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")])


def save(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60), colour).save(path)
    return path


def test_a_folder_means_its_images_in_order_each_once(tmp_path):
    for name in ("b.png", "a.JPG", "inner/c.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    found = find_images([tmp_path / "inner" / "c.png", tmp_path, tmp_path / "a.JPG"])
    assert found == [tmp_path / "inner" / "c.png", tmp_path / "a.JPG", tmp_path / "b.png"]
    (tmp_path / "none" / "deeper").mkdir(parents=True)
    with pytest.raises(UserError, match=r"folder .*none holds no pictures \(.jpg.*name its folders \(deeper\) instead"):
        find_images([tmp_path / "none"])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/0.jpg", "b/1.jpg"], ["0", "1"]),
        (["a/0.jpg", "b/0.jpg"], ["a-0", "b-0"]),
        (["a/0.jpg", "a/0.png"], ["0.jpg", "0.png"]),
        (["a/0.jpg", "a/0.png", "b/0.jpg"], ["a-0.jpg", "a-0.png", "b-0.jpg"]),
        (["x/a/0.jpg", "y/a/0.jpg", "b/1.jpg"], ["x-a-0", "y-a-0", "b-1"]),
    ],
)
def test_files_of_one_name_get_as_much_of_their_folders_as_tells_them_apart(paths, names, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = distinct_names([Path(path) for path in paths])
    assert [name.removeprefix(f"{tmp_path.name}-") for name in found] == names
    assert list(map(str, found.values())) == paths


def test_names_stay_distinct_where_dashes_could_be_taken_for_folders(monkeypatch):
    monkeypatch.chdir("/")
    assert len(distinct_names([Path("a-b/0.jpg"), Path("a/b-0.jpg"), Path("a/0.jpg")])) == 3


def test_same_named_photographs_and_folders_are_explained_side_by_side(checkpoint, tmp_path):
    save(tmp_path / "a" / "0.png"), save(tmp_path / "b" / "0.png", "blue")
    out = tmp_path / "out"
    assert (
        main(["explain", str(tmp_path / "a"), str(tmp_path / "b"), "--ckpt", str(checkpoint), "--out", str(out)]) == 0
    )
    assert {path.name for path in out.glob("*.npy")} == {"a-0-grad_cam.npy", "b-0-grad_cam.npy"}
    told = json.loads((out / "explained.json").read_text())
    assert [entry["image"] for entry in told] == [str(tmp_path / f / "0.png") for f in "ab"]


def test_what_cannot_be_explained_is_listed_and_the_rest_is_there(tmp_path, capsys):
    save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    given = ["explain", str(tmp_path), "--ckpt", "untrained", "--model", "timm:vit_tiny_patch16_224"]
    assert main([*given, "--explainer", "grad_cam", "guided_backprop", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "error: not explained:" in told and "bad.png does not decode" in told and "guided_backprop: Vision" in told
    assert {path.name for path in (tmp_path / "out").glob("*.npy")} == {"good-grad_cam.npy"}
    with pytest.raises(UserError, match="guided_backprop: VisionTransformer has no ReLU"):
        main([*given, "--explainer", "guided_backprop", "--out", str(tmp_path / "none")])
    with pytest.raises(UserError, match=r"bad\.png does not decode"):
        main([given[0], str(tmp_path / "bad.png"), *given[2:], "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "index"), [("0", 0), ("999", 999), ("goldfish", 1), ("Carassius auratus", 1), ("GREAT WHITE SHARK", 2)]
)
def test_a_class_is_found_by_its_index_or_any_of_its_names(text, index):
    assert find_class(text, 1000, names_of_classes(1000)) == index


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("goldfsh", names_of_classes(1000), "--target goldfsh: no such class; did you mean goldfish"),
        ("crane", names_of_classes(1000), "--target crane: classes 134, 517 have that name"),
        ("1000", names_of_classes(1000), "--target 1000: the model has classes 0 to 999"),
        ("-1", names_of_classes(1000), "--target -1: no such class"),
        ("disc", None, "the names of the model's classes are unknown; give an index below 1000"),
        ("cat", ["plane", "dog"], "--target cat: no such class; known: plane, dog"),
    ],
)
def test_a_class_that_is_not_there_is_told_with_those_like_it(text, names, message):
    with pytest.raises(UserError, match=message):
        find_class(text, 1000, names)


def test_the_class_of_a_name_is_explained(tmp_path):
    torch.manual_seed(0)
    entry, path = lookup("demo"), save(tmp_path / "a.png")
    classes = [f"kind {n}" for n in range(12)]
    save_checkpoint(
        tmp_path / "net", create_model("demo"), CheckpointConfig("demo", 12, entry.transform, classes=classes)
    )
    given = ["explain", str(path), "--ckpt", str(tmp_path / "net"), "--target"]
    main([*given, "kind 7", "--out", str(tmp_path / "name")])
    main([*given, "7", "--out", str(tmp_path / "index")])
    told = [json.loads((tmp_path / out / "explained.json").read_text())[0] for out in ("name", "index")]
    assert told[0] == told[1] and told[0]["explained_class"] == 7


def test_photographs_may_stand_after_the_model(photographs):
    given = ["--model", "demo", "--model-arg", "num_classes=5", "--ckpt", "untrained", *photographs]
    args = photographs_module.parser().parse_args(given)
    assert (args.ckpt, args.model, args.model_arg) == (["untrained"], ["demo"], ["num_classes=5"])
    assert args.images == list(map(Path, photographs))


def test_many_photographs_fill_several_contact_sheets(checkpoint, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.cli.explain.ROWS", 1)
    main(["explain", *photographs, "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").glob("contact*")} == {"contact_sheet.png", "contact_sheet_2.png"}


def test_passes_of_slow_explainers_are_counted(checkpoint, photographs, tmp_path, monkeypatch):
    counted, bar = [], photographs_module.tqdm

    class Bar(bar):
        def update(self, n=1):
            counted.append(n)
            return super().update(n)

    monkeypatch.setattr(photographs_module, "tqdm", Bar)
    main(["explain", *photographs, "--ckpt", str(checkpoint), "--explainer", "rise:masks=40", "--out",
          str(tmp_path / "out")])  # fmt: skip
    assert sum(counted) == 40 * len(photographs) and len(counted) > 4


def test_a_batch_of_photographs_that_does_not_fit_is_explained_in_halves(
    checkpoint, photographs, tmp_path, monkeypatch
):
    explained, explain = [], photographs_module.explain

    def hungry(model, images, *args, **kwargs):
        explained.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return explain(model, images, *args, **kwargs)

    monkeypatch.setattr(photographs_module, "explain", hungry)
    main(["explain", *photographs, "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")])
    assert explained == [2, 1, 1]
    assert [e["image"] for e in json.loads((tmp_path / "out" / "explained.json").read_text())] == photographs


def test_measures_of_a_run_equal_those_asked_for_directly(tmp_path, capsys):
    folder = save_untrained(tmp_path / "net", "demo")
    measures = ["average_drop", "insertion:step=512", "pointing_game"]
    main(["--ckpt", str(folder), "--data", "scenes", "--limit", "6", "--explainer", "grad_cam", "fake_cam",
          "--metric", *measures, "--out", str(tmp_path / "out"), "--workers", "0"])  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "per_image.parquet").to_pylist()
    assert len(table) == 12
    subject = load_subject(str(folder))
    from evaluate import explain
    from evaluate.data.loader import load_batches
    from evaluate.data.scenes import ScenesData

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
