"""Damage in the folder of a run: the snapshot before is taken, or one line says what is wrong; never another result."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpoint import read_config
from common.errors import UserError
from tests.faults.conftest import Attempt
from tests.faults.test_kills import figures_of
from tests.train.test_resume import arguments
from train.runs.snapshots import list_snapshots, newest_snapshot, read_snapshot

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, attempts: subprocess.Popen[str]) -> Path:
    """A run of three updates with a snapshot of each, and its photographs."""
    place = tmp_path_factory.mktemp("trained")
    assert attempts.stdin is not None and attempts.stdout is not None
    given = [*given_to(place), "updates=3"]
    asked = {"command": "train", "arguments": given, "watched": "/none", "dies_at": None, "log": f"{place}/log"}
    attempts.stdin.write(json.dumps(asked) + "\n")
    attempts.stdin.flush()
    assert json.loads(attempts.stdout.readline())["status"] == 0, (place / "log").read_text()
    return place


def given_to(place: Path) -> list[str]:
    return arguments(place, "run", "data.workers=0", "snapshots.every_updates=1", "snapshots.keep_last=9")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, where it may be damaged."""
    shutil.copytree(trained / "photos", tmp_path / "photos")
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def newest(run: Path) -> Path:
    return list_snapshots(run / "snapshots")[-1]


def rewrite(place: Path, record: Change | None = None, content: Change | None = None, raw: bytes | None = None) -> None:
    """Change what a snapshot says; its checksum is right."""
    if content is not None:
        held = torch.load(place / "state.pt", weights_only=True)
        content(held)
        torch.save(held, place / "state.pt")
    if raw is not None:
        (place / "state.pt").write_bytes(raw)
    said = json.loads((place / "state.json").read_text())
    said["sha256"] = hashlib.sha256((place / "state.pt").read_bytes()).hexdigest()
    if record is not None:
        record(said)
    (place / "state.json").write_text(json.dumps(said))


class Gadget:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def progress(**changes: Any) -> Change:
    return lambda record: record["progress"].update(changes)


RECORDS: dict[str, Change] = {
    **{f"no {key}": lambda r, key=key: r.pop(key) for key in ("progress", "settings", "command", "classes", "sha256")},
    "an unknown key": lambda r: r.update(more=1),
    "progress without update": lambda r: r["progress"].pop("update"),
    "an unknown key of progress": progress(more=1),
    "progress of text": lambda r: r.update(progress="3 of 10"),
    "update of text": progress(update="3"),
    "update below 0": progress(update=-3),
    "update of another": progress(update=2),
    "a huge update": progress(update=10**30),
    "update after the end": progress(total=1),
    "a broken update": progress(update=3.0),
    "no images": progress(images=0),
    "another number of processes": progress(processes=2),
    "seconds that are no number": progress(seconds=float("nan")),
    "a checksum of another kind": lambda r: r.update(sha256=7),
    "classes of numbers": lambda r: r.update(classes=[1, 2]),
    "settings of text": lambda r: r.update(settings="lr"),
    "an unknown setting": lambda r: r["settings"].update(more=1),
    "a setting of another kind": lambda r: r["settings"].update(seed="x"),
    "a setting that reads the environment": lambda r: r["settings"].update(license="${oc.env:HOME}"),
}
PARTS = ("model", "optimizer", "ema", "scaler", "initial", "processes")
CONTENTS: dict[str, Change] = {
    **{f"no {key}": lambda c, key=key: c.pop(key) for key in PARTS},
    **{f"{key} of a number": lambda c, key=key: c.update({key: 7}) for key in PARTS},
    "an unknown part": lambda c: c.update(more=1),
    "a model of numbers": lambda c: c["model"].update(dict.fromkeys(c["model"], 0)),
    "an average without its count": lambda c: c["ema"].pop("updates"),
    "an average counted below 0": lambda c: c["ema"].update(updates=-1),
    "no process": lambda c: c["processes"].clear(),
    "a process of nothing": lambda c: c["processes"].__setitem__(0, None),
    "a process without its random state": lambda c: c["processes"][0].pop("random"),
    "sums of another kind": lambda c: c["processes"][0].update(meters=[0.0]),
}
DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"state.json: {name}": lambda p, c=c: rewrite(p, record=c) for name, c in RECORDS.items()},
    **{f"state.pt: {name}": lambda p, c=c: rewrite(p, content=c) for name, c in CONTENTS.items()},
    "a pickle that runs code": lambda p: rewrite(p, raw=pickle.dumps(Gadget())),
    "an archive that runs code": lambda p: torch.save({"model": Gadget()}, p / "state.pt") or rewrite(p),
    "no pickle": lambda p: rewrite(p, raw=b"tensors"),
    "nothing": lambda p: rewrite(p, raw=b""),
    "a list": lambda p: torch.save([1], p / "state.pt") or rewrite(p),
    "a list as record": lambda p: (p / "state.json").write_text("[]"),
    "a record that is no text": lambda p: (p / "state.json").write_bytes(b"\xff\xfe"),
    "a record that is cut off": lambda p: (p / "state.json").write_text((p / "state.json").read_text()[:-9]),
    "no record": lambda p: (p / "state.json").unlink(),
    "no tensors": lambda p: (p / "state.pt").unlink(),
    "a folder as tensors": lambda p: (p / "state.pt").unlink() or (p / "state.pt").mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_snapshot_is_passed_over_with_one_line(
    run: Path, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    place = newest(run)
    before = list_snapshots(run / "snapshots")[-2]
    damage(place)
    with pytest.raises(UserError) as caught:
        read_snapshot(place)
    told = str(caught.value)
    assert told.startswith(f"{place} is damaged: ") and "\n" not in told and len(told) < len(str(place)) + 300
    assert "weights_only" not in told and not (run / "ran").exists()
    assert newest_snapshot(run / "snapshots") == before


@pytest.mark.parametrize("name", ["state.json: a huge update", "state.pt: no processes", "an archive that runs code"])
def test_training_and_publishing_go_on_from_the_snapshot_before(
    run: Path, tmp_path: Path, attempt: Attempt, name: str, trained: Path
) -> None:
    DAMAGE[name](newest(run))
    published = attempt("publish", run, "--name", "net", "--checkpoints", tmp_path)
    assert published.status == 0 and "taking the one before it" in published.output
    assert read_config(tmp_path / "net").metrics["updates"] == 2
    again = attempt("train", *given_to(tmp_path), "updates=3", "resume=auto")
    assert again.status == 0 and again.output.count("taking the one before it") == 1, again.output
    assert figures_of(run) == figures_of(trained / "run")


MISFITS: dict[str, Change] = {
    "a weight of another shape": lambda c: c["model"].update({next(iter(c["model"])): torch.zeros(3, 1)}),
    "an optimiser of text": lambda c: c["optimizer"].update(param_groups="x", state=[]),
    "buffers of another number": lambda c: c["processes"][0].update(buffers=[torch.zeros(2)] * 99),
    "a random state of another kind": lambda c: c["processes"][0].update(random={"python": 1}),
    "positions of other layers": lambda c: c["initial"].clear(),
    "no scaler's or average's values": lambda c: c["ema"].update(model={}),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_the_run_is_one_line(run: Path, tmp_path: Path, attempt: Attempt, misfit: Change) -> None:
    rewrite(newest(run), content=misfit)
    ended = attempt("train", *given_to(tmp_path), "updates=4", "resume=auto")
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert ended.output.count("error: ") == 1 and "update_00000003" in ended.output.partition("error: ")[2]


def test_what_lies_beside_snapshots_is_passed_over(run: Path, tmp_path: Path, attempt: Attempt) -> None:
    places = list_snapshots(run / "snapshots")
    shutil.copytree(places[-1], run / "snapshots" / "update_00000003 (copy)")
    (run / "snapshots" / "update_00000099").write_text("a file")
    (run / "snapshots" / "update_00000098").symlink_to(places[0])
    for name in ("update_", "update_12", "update_+0000012", "update_００００００１２"):
        (run / "snapshots" / name).mkdir()
    assert list_snapshots(run / "snapshots") == places
    ended = attempt("train", *given_to(tmp_path), "updates=4", "resume=auto", "snapshots.keep_last=1")
    assert ended.status == 0 and "damaged" not in ended.output
    assert [place.name for place in list_snapshots(run / "snapshots")] == ["update_00000004"]
    assert (run / "snapshots" / "update_00000003 (copy)" / "state.pt").exists()


SIDE_FILES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "config.yaml cut off at the end of a line": ("config.yaml", lambda b: b"\n".join(b.split(b"\n")[:20])),
    "config.yaml of other values": ("config.yaml", lambda b: b.replace(b"lr: 0.01", b"lr: 0.02")),
    "config.yaml that is no text": ("config.yaml", lambda b: b"\xff" + b),
    "classes.json of other names": ("classes.json", lambda b: b'["x"]'),
    "classes.json cut off": ("classes.json", lambda b: b[:-3]),
    "metrics.jsonl with lines of other kinds": ("metrics.jsonl", lambda b: b"[]\n7\n{}\n\xff\xfe\n" + b + b'"x"\n'),
    "metrics.jsonl with a deep line": ("metrics.jsonl", lambda b: b + b"[" * 100_000 + b"\n"),
    "metrics.jsonl with texts": ("metrics.jsonl", lambda b: b + b'{"update": "2", "epoch": 1, "val_raw/top1": "x"}\n'),
    "metrics.jsonl with half a line": ("metrics.jsonl", lambda b: b + b'{"update": 3, "val_'),
    "published.json that is none": ("published.json", lambda b: b"[]"),
}


@pytest.mark.parametrize(("name", "damage"), SIDE_FILES.values(), ids=SIDE_FILES)
def test_damage_in_a_file_beside_the_snapshots_changes_nothing(
    run: Path, tmp_path: Path, attempt: Attempt, trained: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    """Everything that counts lies in the snapshot."""
    published = []
    for called in ("whole", "damaged"):
        if called == "damaged":
            there = (run / name).read_bytes() if (run / name).exists() else b""
            (run / name).write_bytes(damage(there))
        ended = attempt("publish", run, "--name", called, "--checkpoints", tmp_path)
        assert ended.status == 0, ended.output
        published.append(read_config(tmp_path / called))
    assert published[0] == published[1] and published[0].classes == ["cat", "dog", "fox"]
    assert published[0].recipe["optim"]["lr"] == 0.01
    again = attempt("train", *given_to(tmp_path), "updates=3", "resume=auto")
    assert again.status == 0, again.output
    assert figures_of(run) == figures_of(trained / "run")
    assert (run / "classes.json").read_bytes() == (trained / "run" / "classes.json").read_bytes()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"metrics": 3}', '{"metrics": {"updates": "3"}}', "{", '{"metrics": {"updates": 3, "a": []}}']
)
def test_damaged_figures_of_a_finished_run_are_one_line_with_what_to_do(
    run: Path, tmp_path: Path, attempt: Attempt, text: str
) -> None:
    (run / "summary.json").write_text(text)
    ended = attempt("publish", run, "--name", "net", "--checkpoints", tmp_path)
    assert ended.status == 2 and "Traceback" not in ended.output
    assert "summary.json is damaged" in ended.output and f"resume={run} writes it anew" in ended.output


def test_a_run_with_damaged_snapshots_only_is_one_line(run: Path, tmp_path: Path, attempt: Attempt) -> None:
    for place in list_snapshots(run / "snapshots"):
        (place / "state.pt").write_bytes(b"")
    for command in (["train", *given_to(tmp_path), "resume=auto"], ["publish", run, "--name", "net"]):
        ended = attempt(*command)
        assert ended.status == 2 and "no whole snapshot (3 damaged)" in ended.output.splitlines()[-1], ended.output
