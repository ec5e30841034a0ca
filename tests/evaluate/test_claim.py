"""What lies in a folder of results is replaced only where that was asked for."""

import json

import pytest
from PIL import Image

from common.errors import UserError
from evaluate import engine
from evaluate.claim import claimed, folder_of
from evaluate.cli import main
from tests.evaluate.conftest import save_untrained

WRITTEN = ("report.html", "charts/bars-*.png", "events")
KEPT = ("part*", "parts are kept")


def claim(out, question, overwrite=False, left="report.html"):
    with claimed(out, question, "the command", WRITTEN, overwrite, KEPT):
        (out / left).write_text(str(question))


def test_the_same_question_may_go_on_and_another_one_is_refused_with_what_differs(tmp_path):
    first = {"explainers": ("grad_cam", "centre"), "limit": 20, "layer": None, "weights of a": "f" * 64}
    claim(tmp_path, first)
    claim(tmp_path, first)
    assert json.loads((tmp_path / "run.json").read_text())["command"] == "the command"
    second = {"explainers": ["centre"], "limit": None, "layer": None, "weights of b": "0" * 64}
    told = "explainers grad_cam centre, now centre; limit 20, now none. Take another --out, or give --overwrite"
    with pytest.raises(UserError, match=told):
        claim(tmp_path, second)
    assert (tmp_path / "report.html").read_text() == str(first)
    with pytest.raises(UserError, match=r"layer \(1\)"):
        claim(tmp_path, {"layer (1)": 1, **first})
    with pytest.raises(UserError, match=r"weights of a f+, now e+\. Take"):
        claim(tmp_path, first | {"weights of a": "e" * 64})


def test_with_overwrite_only_what_such_a_run_writes_goes(tmp_path):
    (tmp_path / "charts").mkdir()
    (tmp_path / "events").mkdir()
    for name in ("charts/bars-1.png", "charts/mine.png", "events/1", "notes.txt"):
        (tmp_path / name).write_text("x")
    claim(tmp_path, {"limit": 1}, overwrite=True)
    claim(tmp_path, {"limit": 2}, overwrite=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"charts/mine.png", "notes.txt", "report.html", "run.json"}


@pytest.mark.parametrize("name", ["report.html", "events", "charts/bars-mine.png"])
def test_what_nobody_knows_the_origin_of_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"holds {name.rpartition('/')[2]}, of unknown origin"):
        claim(tmp_path, {"limit": 1})
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize("text", ["", "[]", '{"mine": 1}', '{"question": 3}'])
def test_a_file_of_ours_that_is_damaged_or_somebody_elses_is_not_replaced(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json, of unknown origin"):
        claim(tmp_path, {"limit": 1})
    assert (tmp_path / "run.json").read_text() == text


def test_a_run_that_ends_with_nothing_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for out, there in ((tmp_path / "new", False), (tmp_path / "mine", True)):
        with pytest.raises(KeyboardInterrupt), claimed(out, {"limit": 1}, "", WRITTEN, False, KEPT):
            raise KeyboardInterrupt
        assert out.exists() == there
    with pytest.raises(KeyboardInterrupt) as caught, claimed(tmp_path / "new", {"limit": 1}, "", WRITTEN, False, KEPT):
        (tmp_path / "new" / "part").write_text("finished")
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["parts are kept"]
    assert (tmp_path / "new" / "run.json").exists()  # what is there belongs to a question


def test_a_folder_that_is_not_named_follows_from_the_question():
    first = folder_of({"limit": 1}, "net (2)", "scenes")
    assert first == folder_of({"limit": 1}, "net (2)", "scenes") != folder_of({"limit": 2}, "net (2)", "scenes")
    assert first.parts[0] == "results" and first.name.startswith("net_2_-scenes-")


@pytest.fixture
def small(checkpoint):
    return ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "4", "--workers", "0"]


def no_image(*_):
    raise AssertionError("an image was measured")


def test_an_evaluation_of_something_else_is_refused_before_the_first_image(small, tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    main([*small, *out, "--explainer", "grad_cam"])
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    other = save_untrained(tmp_path / "other", seed=3)
    monkeypatch.setattr(engine, "measure_batches", no_image)
    for changed, told in (
        (["--explainer", "layer_cam"], "explainers grad_cam, now layer_cam"),
        (["--metric", "complexity"], "metrics none, now complexity"),
        (["--protocol", "aligned"], "protocols paper, now aligned"),
        (["--limit", "5"], "limit 4, now 5"),
        (["--target", "predicted"], "target label, now predicted"),
        (["--layer", "stages.1"], r"layer none, now stages\.1"),
        (["--precision", "bf16"], "precision fp32, now bf16"),
        (["--ckpt", str(other)], "checkpoints untrained_dcls, now untrained_dcls other"),
    ):
        with pytest.raises(UserError, match=told):
            main([*small, *out, *([] if "--explainer" in changed else ["--explainer", "grad_cam"]), *changed])
    with pytest.raises(UserError, match=r"weights of untrained_dcls [0-9a-f]+, now [0-9a-f]+\. "):
        main(["--ckpt", f"untrained_dcls={other}", *small[2:], *out, "--explainer", "grad_cam"])
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_scores_is_protected_too(small, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 2)
    measured = engine.measure_batches

    def killed(*asked):
        yield next(measured(*asked))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "measure_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*small, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "scores.json").exists()
    parts = list((tmp_path / "out").glob("parts/*/*"))
    with pytest.raises(UserError, match="holds the results of something else"):
        main([*small, "--out", str(tmp_path / "out"), "--explainer", "layer_cam"])
    assert len(parts) == 1 and parts[0].exists()


def test_without_out_a_question_has_its_own_folder(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for explainer in ("grad_cam", "layer_cam", "grad_cam"):
        main([*small, "--explainer", explainer])
    printed = capsys.readouterr().out
    assert len(list((tmp_path / "results").iterdir())) == 2 and "1 of 1 parts kept" in printed
    for folder in (tmp_path / "results").iterdir():
        assert folder.name.startswith("untrained_dcls-scenes-") and str(folder.name) in printed


def test_with_overwrite_parts_of_the_same_question_are_kept(small, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--overwrite"]
    for _ in range(2):
        main([*small, *out])
    assert "1 of 1 parts kept" in capsys.readouterr().out
    (tmp_path / "out" / "run.json").unlink()  # as an earlier version left it
    main([*small, *out])
    assert "1 of 1 parts kept" in capsys.readouterr().out


def test_an_explanation_is_not_replaced_unasked(checkpoint, tmp_path):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    given = ["explain", str(tmp_path / "a.png"), "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")]
    main([*given, "--explainer", "grad_cam"])
    main([*given, "--explainer", "grad_cam"])
    before = (tmp_path / "out" / "explained.json").read_text()
    with pytest.raises(UserError, match="explainers grad_cam, now layer_cam"):
        main([*given, "--explainer", "layer_cam"])
    with pytest.raises(UserError, match="target none, now 3"):
        main([*given, "--explainer", "grad_cam", "--target", "3"])
    assert (tmp_path / "out" / "explained.json").read_text() == before
    main([*given, "--explainer", "layer_cam", "--overwrite"])
    main([*given, "--explainer", "layer_cam", "--target", "3", "--overwrite"])
    assert {path.name for path in (tmp_path / "out").glob("a-*")} == {"a-layer_cam.npy", "a-layer_cam.png"}
    Image.new("RGB", (80, 60), "blue").save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"images .*, now "):
        main([*given, "--explainer", "layer_cam"])


def test_files_of_an_explanation_of_unknown_origin_are_left_alone(checkpoint, tmp_path):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    (tmp_path / "a-grad_cam.png").write_text("mine")
    with pytest.raises(UserError, match=r"holds a-grad_cam\.png, of unknown origin"):
        main(["explain", str(tmp_path / "a.png"), "--ckpt", str(checkpoint), "--out", str(tmp_path)])
    assert (tmp_path / "a-grad_cam.png").read_text() == "mine"
