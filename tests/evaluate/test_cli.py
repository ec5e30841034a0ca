"""The command: what it leaves, that it says what is wrong in one line, and that processes share the work."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.data.tfrecord import index_records
from common.errors import UserError
from common.text import markdown
from evaluate.cli.main import main
from evaluate.explainers.registry import EXPLAINERS
from evaluate.run import engine, identity
from evaluate.run.options import RunOptions
from tests.evaluate.conftest import save_untrained

ROOT = Path(__file__).parents[2]


def run(*arguments, launcher=(), **environment):
    command = [sys.executable, "-m", *launcher, "evaluate"] if not launcher else [sys.executable, *launcher]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "TQDM_DISABLE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_results_of_a_run(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "20", "--protocol", "paper", "aligned"]
    assert main([*arguments, "--out", str(out), "--workers", "0"]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert [(s["explainer"], s["protocol"]) for s in scores] == [
        (e, p) for e in ("grad_cam", "threshold_grad_cam") for p in ("paper", "aligned")
    ]
    table = pq.read_table(out / "per_image.parquet").to_pylist()
    assert len(table) == 80 and len({row["image_id"] for row in table}) == 20
    for item in scores:
        rows = [r for r in table if (r["explainer"], r["protocol"]) == (item["explainer"], item["protocol"])]
        values = [r["spearman"] for r in rows if r["spearman"] is not None]
        assert item["mean_spearman"] == pytest.approx(sum(values) / len(values))
        assert item["interval"][0] < item["alignment"] < item["interval"][1]
        assert item["n_scored"] == len(values) and item["ceiling"] is None
        assert "20 of 1000 images" in item["partial"] and torch.__version__.startswith(item["versions"]["torch"])
    printed = capsys.readouterr().out
    assert "threshold_grad_cam" in printed and "PARTIAL: 20 of 1000" in printed and str(out) in printed
    report = (out / "report.html").read_text()
    assert "20 of 1000 images" in report and "data:image/webp" in report
    assert not re.search(r"(src|href)=['\"]https?:", report)
    assert "grad_cam" in (out / "report.md").read_text() and (out / "figures" / "bars-grad_cam-paper.pdf").exists()


def test_clickme_scores_are_divided_by_the_ceiling(clickme_root, tmp_path):
    out = tmp_path / "out"
    arguments = ["--ckpt", "untrained", "--model", "timm:resnet18", "--data-root", str(clickme_root)]
    main([*arguments, "--out", str(out), "--workers", "0", "--protocol", "paper", "aligned"])
    for item in json.loads((out / "scores.json").read_text()):
        assert item["alignment"] == pytest.approx(item["mean_spearman"] / 0.65753)
        assert item["n_degenerate"] >= 1  # one human map is blank
        assert item["n_scored"] == (7 if item["protocol"] == "aligned" else 7 - item["n_degenerate"])
        assert "15 published shards absent" in item["partial"]


def test_a_second_start_keeps_what_is_finished_and_other_options_do_not(checkpoint, tmp_path, capsys):
    arguments = [
        "--ckpt",
        str(checkpoint),
        "--data",
        "scenes",
        "--limit",
        "8",
        "--out",
        str(tmp_path),
        "--workers",
        "0",
    ]
    main(arguments)
    assert "kept" not in capsys.readouterr().out
    first = (tmp_path / "scores.json").read_text()
    main(arguments)
    assert "1 of 1 parts kept" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(first)
    with pytest.raises(UserError, match=r"holds the results of something else: seed 0, now 1\. Take another --out"):
        main([*arguments, "--seed", "1"])
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(first)
    main([*arguments, "--seed", "1", "--overwrite"])
    assert "kept" not in capsys.readouterr().out


def test_a_killed_run_continues_where_it_was(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluate.run.identity.CHUNK", 4)
    arguments = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "12", "--workers", "0"]
    main([*arguments, "--out", str(tmp_path / "whole")])
    whole = pq.read_table(tmp_path / "whole" / "per_image.parquet")
    measured = engine.measure_batches

    def killed(*asked):
        for number, batch in enumerate(measured(*asked)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(engine, "measure_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--out", str(tmp_path / "killed")])
    monkeypatch.setattr(engine, "measure_batches", measured)
    capsys.readouterr()
    main([*arguments, "--out", str(tmp_path / "killed")])
    assert "2 of 3 parts kept" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "killed" / "per_image.parquet").equals(whole)


def test_two_processes_give_the_rows_of_one(checkpoint, tmp_path):
    arguments = ["--ckpt", checkpoint, "--data", "scenes", "--limit", "13", "--workers", "0", "--device", "cpu"]
    one = run(*arguments, "--out", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "evaluate")
    two = run(*arguments, "--out", tmp_path / "two", launcher=launcher, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "two" / "scores.json").read_text())[0]["processes"] == 2
    a, b = (pq.read_table(tmp_path / name / "per_image.parquet").to_pylist() for name in ("one", "two"))
    assert len(a) == len(b) == 26
    for first, second in zip(a, b):
        assert first["spearman"] == pytest.approx(second["spearman"], abs=2e-3)
        assert {k: v for k, v in first.items() if k != "spearman"} == {
            k: v for k, v in second.items() if k != "spearman"
        }


def test_a_bad_record_on_one_process_stops_both_with_a_message(clickme_root, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    content = bytearray((clickme_root / "val-0.tfrecords").read_bytes())
    content[int(index_records(clickme_root / "val-0.tfrecords").offsets[1]) + 200] ^= 1
    (folder / "val-0.tfrecords").write_bytes(content)
    arguments = ["--ckpt", "untrained", "--model", "timm:resnet18", "--data-root", folder, "--workers", "0"]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "evaluate")
    found = run(
        *arguments, "--out", tmp_path / "out", "--device", "cpu",
        launcher=launcher, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert found.returncode != 0
    assert found.stderr.count("error: ") == 1 and "val-0.tfrecords" in found.stderr and "record 1" in found.stderr


def test_skip_bad_leaves_damaged_records_out_lists_them_and_says_so(clickme_root, tmp_path, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    content = bytearray((clickme_root / "val-0.tfrecords").read_bytes())
    for record in (1, 2):
        content[int(index_records(clickme_root / "val-0.tfrecords").offsets[record]) + 200] ^= 1
    (folder / "val-0.tfrecords").write_bytes(content)
    arguments = ["--ckpt", "untrained", "--model", "timm:resnet18", "--data-root", str(folder), "--workers", "0"]
    with pytest.raises(UserError, match="record 1"):
        main([*arguments, "--out", str(tmp_path / "out")])
    main([*arguments, "--out", str(tmp_path / "out"), "--skip-bad", "--batch-size", "2"])
    printed = capsys.readouterr().out
    assert "2 images left out" in printed and "record 1" in printed and "record 2" in printed
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores[0]["n_images"] == 2 and "2 images could not be read" in scores[0]["partial"]
    ids = set(pq.read_table(tmp_path / "out" / "per_image.parquet").column("image_id").to_pylist())
    assert ids == {"val-0/00000", "val-0/00003"}


def test_a_resumed_run_still_lists_what_was_left_out_and_other_human_passes_over_it(clickme_root, tmp_path, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    content = bytearray((clickme_root / "val-0.tfrecords").read_bytes())
    content[int(index_records(clickme_root / "val-0.tfrecords").offsets[1]) + 200] ^= 1
    (folder / "val-0.tfrecords").write_bytes(content)
    arguments = ["--ckpt", "untrained", "--model", "timm:resnet18", "--data-root", str(folder), "--workers", "0"]
    arguments += ["--explainer", "other_human", "grad_cam", "--precision", "bf16", "--batch-size", "2"]
    for kept in (False, True):
        main([*arguments, "--out", str(tmp_path / "out"), "--skip-bad"])
        printed = capsys.readouterr().out
        assert "1 images left out" in printed and "record 1" in printed and ("parts kept" in printed) == kept
    rows = pq.read_table(tmp_path / "out" / "per_image.parquet").to_pylist()
    assert [r["image_id"] for r in rows if r["explainer"] == "other_human"] == [f"val-0/{n:05d}" for n in (0, 2, 3)]


def test_where_no_image_can_be_read_that_is_said(tmp_path):
    (tmp_path / "n01443537").mkdir()
    (tmp_path / "n01443537" / "1.jpg").write_bytes(b"no picture")
    arguments = ["--ckpt", "untrained", "--model", "timm:resnet18", "--data", "imagefolder", "--workers", "0"]
    with pytest.raises(UserError, match="none of the 1 images of imagefolder could be read"):
        main([*arguments, "--data-root", str(tmp_path), "--out", str(tmp_path / "out"), "--skip-bad"])


def test_what_an_earlier_run_left_does_not_pass_for_this_ones(checkpoint, tmp_path):
    arguments = ["--ckpt", str(checkpoint), str(checkpoint), "--data", "scenes", "--limit", "4", "--workers", "0"]
    arguments += ["--out", str(tmp_path / "out")]
    main([*arguments, "--compare", checkpoint.name, f"{checkpoint.name} (2)"])
    assert (tmp_path / "out" / "comparisons.json").exists()
    (tmp_path / "out" / "figures" / "mine.png").write_bytes(b"a user's own")
    main([*arguments, "--explainer", "layer_cam", "--overwrite"])
    assert not (tmp_path / "out" / "comparisons.json").exists()
    figures = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
    assert len(figures) > 1 and not [name for name in figures if "grad_cam" in name]
    assert "mine.png" in figures  # what an evaluation did not make stays


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--workers", "-1"], "--workers -1: must be at least 0"),
        (["--dry-run"], "give it with --study"),
        (["--metric", "dice"], "--metric dice: rows with human maps have it already"),
        (["--compare", "demo (untrained)", "demmo"], r"--compare demmo: .* there are demo \(untrained\)"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, message, tmp_path):
    given = ["--ckpt", "untrained", "--model", "demo", "--data", "scenes", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        main([*given, *arguments])
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_told_in_one_line(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = run("--ckpt", checkpoint, "--data", "scenes", "--limit", "2", "--out", tmp_path / "file" / "out")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert found.stderr.startswith("error: ") and "Not a directory" in found.stderr


def test_the_folder_of_a_training_run_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a training run"):
        main(["--ckpt", str(checkpoint), "--data", "scenes", "--out", str(tmp_path / "run")])


def test_parts_are_small_where_an_image_takes_long():
    cheap = RunOptions(("grad_cam", "other_human", "input_gradient"))
    assert identity.chunk_size(cheap) == identity.CHUNK
    for slow in (RunOptions(("grad_cam", "rise")), RunOptions(("opti_cam",)), RunOptions(measures=("deletion",))):
        assert identity.chunk_size(slow) == identity.SLOW_CHUNK < identity.CHUNK


def test_plain_python_exits_with_2_and_one_line(tmp_path):
    found = run("--ckpt", tmp_path / "nothing", "--data", "scenes")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert found.stderr.startswith("error: --ckpt") and found.stderr.count("\n") == 1


def test_data_of_other_classes_is_refused(checkpoint, clickme_root, tmp_path):
    with pytest.raises(UserError, match="distinguishes 12 classes, clickme has 1000"):
        main(["--ckpt", str(checkpoint), "--data-root", str(clickme_root), "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--ckpt", "x", "--data", "clickme"], "needs --data-root"),
        (["--data", "scenes"], "give either --ckpt"),
        (["--ckpt", "x", "--data", "scenes", "--limit", "0"], "--limit 0"),
        (["--ckpt", "untrained", "--data", "scenes"], "needs --model"),
        (["--ckpt", "untrained", "--model", "demo", "--model-arg", "x", "--data", "scenes"], "KEY=VALUE"),
        (["--ckpt", "untrained", "--model", "demo", "--data", "scenes", "--device", "cuda"], "no GPU"),
    ],
)
def test_options_that_cannot_be_served(arguments, message, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=message):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_compare_prints_a_paired_difference(checkpoint, tmp_path, capsys):
    other = save_untrained(tmp_path / "other", seed=3)
    main(["--ckpt", str(checkpoint), str(other), "--data", "scenes", "--limit", "16", "--out", str(tmp_path / "out"),
          "--workers", "0", "--compare", "untrained_dcls", "other",
          "--explainer", "grad_cam", "conceptor_cam"])  # fmt: skip
    items = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    scores = {(s["checkpoint"], s["explainer"]): s for s in json.loads((tmp_path / "out" / "scores.json").read_text())}
    for item in items:
        note = "reconstruction: not verified against the paper"
        assert item["explainer_note"] == (note if item["explainer"] == "conceptor_cam" else None)
        gain = (
            scores["other", item["explainer"]]["alignment"] - scores["untrained_dcls", item["explainer"]]["alignment"]
        )
        if item["n_pairs"] == 16:
            assert item["difference"] == pytest.approx(gain)
        assert item["verdict"] in {"higher", "lower", "no clear difference"}
    assert "other - untrained_dcls" in capsys.readouterr().out


def test_same_named_folders_get_their_own_rows(checkpoint, tmp_path):
    twin = save_untrained(tmp_path / "untrained_dcls", seed=5)
    main(["--ckpt", str(checkpoint), str(twin), "--data", "scenes", "--limit", "4", "--out", str(tmp_path / "o"),
          "--workers", "0"])  # fmt: skip
    names = [s["checkpoint"] for s in json.loads((tmp_path / "o" / "scores.json").read_text())]
    assert set(names) == {"untrained_dcls", "untrained_dcls (2)"}


def test_dry_run_of_the_study_names_sixteen_models_and_their_sources(tmp_path, capsys):
    (tmp_path / "convnext_t.pth").write_bytes(b"")
    main(["--study", "paper", "--dry-run", "--data-root", str(tmp_path), "--weights-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert len(printed.strip().splitlines()) == 18
    assert f"convnext_t                {tmp_path}/convnext_t.pth" in printed
    assert "zenodo.org/records/8370737/files/fastvit_sa24_v1_17lim_34el_seed0.pth.tar" in printed
    assert "download timm:resnet50.a1_in1k" in printed


def test_another_layer_is_explained_where_one_is_named(checkpoint, tmp_path):
    scores = {}
    for layer in (None, "stages.0"):
        out = tmp_path / str(layer)
        named = [] if layer is None else ["--layer", layer]
        given = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "4", "--explainer", "grad_cam", *named]
        assert main([*given, "--workers", "0", "--out", str(out)]) == 0
        scores[layer] = json.loads((out / "scores.json").read_text())[0]
    assert scores[None]["mean_spearman"] != scores["stages.0"]["mean_spearman"]
    assert scores["stages.0"]["layer"] == "stages.0" and "last feature map" in scores[None]["layer"]
    assert "stages.0" in (tmp_path / "stages.0" / "report.html").read_text()
    with pytest.raises(UserError, match=r"no layer 'stages\.9'"):
        main([*given[:-2], "--layer", "stages.9", "--workers", "0", "--out", str(tmp_path / "none")])


def test_the_note_of_an_explainer_is_in_every_result_file(checkpoint, tmp_path):
    given = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "3", "--explainer", "conceptor_cam", "grad_cam"]
    assert main([*given, "--workers", "0", "--out", str(tmp_path)]) == 0
    note = EXPLAINERS["conceptor_cam"].note
    for name in ("scores.json", "report.html", "report.md"):
        assert note in (tmp_path / name).read_text()
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert [row["explainer_note"] for row in csv.DictReader(file)] == [note, ""]
    metadata = pq.read_schema(tmp_path / "per_image.parquet").metadata
    assert json.loads(metadata[b"explainer_notes"]) == {"conceptor_cam": note}
    events = EventAccumulator(str(tmp_path / "tensorboard" / checkpoint.name)).Reload()
    text = events.Tensors("note/conceptor_cam/text_summary")[0].tensor_proto.string_val[0]
    assert text.decode() == note


def test_what_an_explainer_found_in_a_network_is_noted_for_that_checkpoint(clickme_root, tmp_path):
    """A network of ReLUs has nothing to say beyond the explainer's own note; a resumed run says the same."""
    names = ("timm:resnet18", "timm:mobilenetv3_small_050")
    plain, mixed = (str(save_untrained(tmp_path / name[5:], name)) for name in names)
    given = ["--ckpt", plain, mixed, "--data-root", str(clickme_root), "--limit", "2", "--workers", "0", "--explainer",
             "guided_backprop", "grad_cam", "--compare", "resnet18", "mobilenetv3_small_050"]  # fmt: skip
    out, own = tmp_path / "out", EXPLAINERS["guided_backprop"].note
    counts = "ReLUs are 14 of 42 activation functions, the plain gradient passes hardswish (19), hardsigmoid (9)"
    found = f"{own}; here {counts}"
    both = f"resnet18: {own} | mobilenetv3_small_050: {found}"
    for _ in range(2):
        assert main([*given, "--out", str(out)]) == 0
        notes = {item["checkpoint"]: item["explainer_notes"] for item in json.loads((out / "scores.json").read_text())}
        assert notes == {"resnet18": {"guided_backprop": own}, "mobilenetv3_small_050": {"guided_backprop": found}}
        with (out / "scores.csv").open(newline="") as file:
            assert [row["explainer_note"] for row in csv.DictReader(file)] == [own, "", found, ""]
        compared = json.loads((out / "comparisons.json").read_text())
        assert [item["explainer_note"] for item in compared] == [both, None]
        metadata = pq.read_schema(out / "per_image.parquet").metadata
        assert json.loads(metadata[b"explainer_notes"]) == {"guided_backprop": both}
        assert markdown(both) in (out / "report.md").read_text() and both in (out / "report.html").read_text()
