"""What lies in a folder of results is replaced only where that was asked for."""

import json
import os

import pytest
from PIL import Image

from common import leftovers
from common.errors import UserError
from common.leftovers import temporary_file
from evaluate.cli.claim import claimed, folder_of
from evaluate.cli.main import main
from evaluate.run import engine
from tests.evaluate.conftest import save_untrained

NAMES = ("report.html", "charts/bars-1.png", "events/net")
KEPT = ("part*", "parts are kept")


def claim(out, question, overwrite=False, left="report.html"):
    with claimed(out, question, "the command", NAMES, overwrite, KEPT):
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


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_with_overwrite_only_what_such_a_run_writes_goes(tmp_path):
    for name in ("charts/bars-1.png", "charts/bars-mine.png", "events/net/1", "events/mine/1", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    claim(tmp_path, {"limit": 1}, overwrite=True)
    mine = {"charts/bars-mine.png", "events/mine/1", "notes.txt"}
    assert files_in(tmp_path) == {*mine, "report.html", "run.json"}
    (tmp_path / "charts/bars-1.png").write_text("of the first question")
    claim(tmp_path, {"limit": 2}, overwrite=True)
    assert files_in(tmp_path) == {*mine, "report.html", "run.json"}


def test_what_an_earlier_question_wrote_under_other_names_goes_too(tmp_path):
    with claimed(tmp_path, {"limit": 1}, "", ["charts/bars-old.png"], False, KEPT):
        (tmp_path / "charts").mkdir()
        (tmp_path / "charts/bars-old.png").write_text("x")
        (tmp_path / "charts/bars-mine.png").write_text("x")
    claim(tmp_path, {"limit": 2}, overwrite=True)
    assert files_in(tmp_path) == {"charts/bars-mine.png", "report.html", "run.json"}


@pytest.mark.parametrize("name", ["../mine.txt", "/MINE", ".", "", "a/../../mine.txt", 3])
def test_a_record_that_names_files_elsewhere_removes_none(tmp_path, name):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    name = str(mine) if name == "/MINE" else name
    (out / "run.json").write_text(json.dumps({"question": {"limit": 1}, "written": [name]}))
    claim(out, {"limit": 2}, overwrite=True)
    assert mine.read_text() == "mine" and files_in(out) == {"report.html", "run.json"}


@pytest.mark.parametrize("name", ["report.html", "events/net", "charts/bars-1.png"])
def test_what_nobody_knows_the_origin_of_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"holds {name}, of unknown origin"):
        claim(tmp_path, {"limit": 1})
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize("question", [{"limit": 1}, {"limit": 2}])
def test_two_at_once_are_refused_with_the_first_ones_process_and_lose_nothing(tmp_path, question):
    with claimed(tmp_path, {"limit": 1}, "", NAMES, False, KEPT):
        (tmp_path / "report.html").write_text("of the first")
        with pytest.raises(UserError, match=rf"--out {tmp_path} is in use by process {os.getpid()} on "):
            claim(tmp_path, question, overwrite=True)
        assert (tmp_path / "report.html").read_text() == "of the first"
    claim(tmp_path, question, overwrite=True)
    assert files_in(tmp_path) == {"report.html", "run.json"}


def test_what_a_killed_run_was_writing_goes_whatever_host_it_ran_on(tmp_path, monkeypatch):
    for name in ("charts/bars-1.png", "parts/net/1", "events/net"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(leftovers, "_host", lambda: "0123abcd")
        temporary_file(tmp_path / name)
        monkeypatch.undo()
    with claimed(tmp_path, {"limit": 1}, "", NAMES, False, ("parts/*/*", "")):
        pass
    assert files_in(tmp_path) == {"run.json"}


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
        with pytest.raises(KeyboardInterrupt), claimed(out, {"limit": 1}, "", NAMES, False, KEPT):
            raise KeyboardInterrupt
        assert out.exists() == there
    with pytest.raises(KeyboardInterrupt) as caught, claimed(tmp_path / "new", {"limit": 1}, "", NAMES, False, KEPT):
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
    monkeypatch.setattr("evaluate.run.identity.CHUNK", 2)
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
    (tmp_path / "out" / "run.json").unlink()
    (tmp_path / "out" / "figures" / "bars-mine.pdf").write_text("mine")
    (tmp_path / "out" / "tensorboard" / "mine").mkdir()
    main([*small, *out])
    assert "1 of 1 parts kept" in capsys.readouterr().out
    assert (tmp_path / "out" / "figures" / "bars-mine.pdf").exists()
    assert (tmp_path / "out" / "tensorboard" / "mine").exists()


def test_every_file_of_a_run_is_written_down_beforehand(small, tmp_path):
    """Else another question would leave it there."""
    more = ["--metric", "insertion:step=2048", "complexity", "--explainer", "grad_cam", "other_human", "--compare"]
    two = ["--ckpt", f"a={small[1]}", f"b (2)={small[1]}", *small[2:]]
    main([*two, "--out", str(tmp_path), *more, "a", "b (2)", "--protocol", "paper", "aligned"])
    written = json.loads((tmp_path / "run.json").read_text())["written"]
    there = {name for name in files_in(tmp_path) if not name.startswith(("parts/", "run.json"))}
    folders = [name for name in written if (tmp_path / name).is_dir()]
    assert there and all(name in written or name.startswith(tuple(f"{f}/" for f in folders)) for name in there)
    assert any(name.startswith("figures/insertion") for name in there) and "comparisons.json" in there
    assert len(folders) == 2


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
