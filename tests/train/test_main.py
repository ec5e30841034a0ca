"""The command as people type it: exit codes, one-line errors, the summary, and what is left behind."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._inductor import config as inductor

from common import surgery
from common.checkpoint import load_checkpoint, read_config
from common.errors import UserError
from common.surgery import position_groups
from tests.train.conftest import ROOT, Launched, make_photographs, metrics
from train import build, loop
from train.configure import load_settings
from train.publish import publish_run, upload

TINY = [
    "recipe=demo_dcls",
    "smoke=true",
    "data.image_size=32",
    "data.eval_size=32",
    "optim.name=adamw",
    "threads=1",
]


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train/main.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_without_a_recipe_it_lists_them() -> None:
    run = typed()
    assert run.returncode == 2
    assert "convnext_b_dcls" in run.stderr and "ConvNeXt-Base with DCLS" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["optim.lr", "--help"], ["recipe=demo", "--help"]])
def test_help_is_no_error(words: list[str]) -> None:
    run = typed(*words)
    assert (run.returncode, run.stderr) == (0, "")
    assert "optim.lr=0.001\n    Peak learning rate" in run.stdout


def test_a_recipe_without_imagenet_says_what_to_do() -> None:
    run = typed("recipe=convnext_b_dcls")
    assert run.returncode == 2 and "Traceback" not in run.stderr
    message = run.stderr.strip()
    assert message.startswith("error: ") and "\n" not in message
    assert all(part in message for part in ("data.root=", "ROOT/train/CLASS", "ROOT/val/CLASS", "smoke=true"))


def empty(folder: Path) -> str:
    return f"data.root={folder}"


def hollow_class(folder: Path) -> str:
    (make_photographs(folder / "d") / "owl").mkdir()
    return f"data.root={folder}/d"


def broken_picture(folder: Path) -> str:
    (make_photographs(folder / "d") / "fox" / "1.jpg").write_bytes(b"broken")
    return f"data.root={folder}/d"


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        (lambda folder: f"data.root={folder}/imagenet", ["no such folder", "ROOT/train/CLASS", "smoke=true"]),
        (empty, ["holds no class folders"]),
        (hollow_class, ["owl holds no pictures"]),
        (broken_picture, ["fox/1.jpg does not decode", "Get the file again"]),
        (lambda _: "optim.lrate=3", ["did you mean optim.lr?"]),
        (lambda _: "recipe=convnext_b_dlcs", ["did you mean convnext_b_dcls"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, given: Callable[[Path], str], messages: list[str]
) -> None:
    (tmp_path / "input").mkdir()
    argument = given(tmp_path / "input")
    small = ["batch_size=4", "global_batch=16", "epochs=1", "data.image_size=32", "data.workers=1", "data.eval_size=32"]
    small += ["data.source=imagefolder", "compile=false", "precision=fp32", "optim.name=adamw", "optim.args={}"]
    where = [f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints"]
    arguments = ["recipe=demo_dcls", *small, *where, argument]
    run = typed(*arguments)
    assert run.returncode == 2, run.stderr
    error = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and all(message in error[0] for message in messages), run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    assert not (tmp_path / "checkpoints").exists()
    assert not list(tmp_path.glob("**/.*.part"))


def test_an_error_that_one_rank_meets_is_said_by_it(tmp_path: Path, launch: Callable[..., Launched]) -> None:
    """Two processes: the second one gets a picture that does not decode."""
    root = make_photographs(tmp_path / "photos", each=2)
    given = [*TINY, "smoke=false", "data.source=imagefolder", f"data.root={root}", "data.val_fraction=0.2", "epochs=9"]
    given += ["data.workers=0", "global_batch=2", "batch_size=1", f"run_dir={tmp_path}/run", "publish=false"]
    (root / "cat" / "0.jpg").write_bytes(b"broken")
    run = launch(given, 2)
    assert run.returncode != 0
    assert "cat/0.jpg does not decode" in run.output


def test_a_run_leaves_everything_needed_to_watch_and_publish_it(
    tmp_path: Path, train_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_here(*TINY, "log.tensorboard=true", "positions.repulsion=true", "positions.repulsion_from_epoch=0")
    shown = capsys.readouterr().err
    assert "python -m evaluate --ckpt" in shown and "top-1, raw weights" in shown and "positions moved by" in shown
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = events.Tags()
    for name in ("train/loss", "train/repulsion", "train/total", "train/top1", "train/grad_norm"):
        assert name in tags["scalars"]
    for name in ("lr/weights", "lr/positions", "speed/images_per_second", "speed/data_share", "speed/memory_gib"):
        assert name in tags["scalars"]
    assert {"data/first_batch", "dcls/positions", "dcls/kernels", "dcls/displacement"} <= set(tags["images"])
    assert any(t.startswith("P/") for t in tags["histograms"])
    assert any("settings" in t for t in tags["tensors"])
    for name in tags["scalars"]:
        if not name.startswith("final/"):
            recorded = {e.step: e.value for e in events.Scalars(name)}
            assert recorded == pytest.approx(metrics(run, name), rel=1e-6)
    total, loss, term = (metrics(run, f"train/{n}")[2] for n in ("total", "loss", "repulsion"))
    assert total == pytest.approx(loss + term) and term > 0
    # published again under another name, it is the same model
    again = publish_run(run, "again", tmp_path / "elsewhere")
    first = load_checkpoint(tmp_path / "checkpoints" / "demo_dcls_smoke")[1]
    second = load_checkpoint(again)[1]
    assert first.weights_sha256 == second.weights_sha256
    assert {p.name for p in again.glob("*.png")} == {"curve.png", "positions.png", "displacement.png", "kernels.png"}
    assert str(tmp_path) not in (again / "config.json").read_text()
    assert second.command.startswith("python train/main.py recipe=demo_dcls smoke=true")


@pytest.mark.parametrize("source", ["checkpoints/demo", "checkpoints/demo/model.safetensors"])
def test_a_run_starts_at_the_function_of_plain_weights(source: str) -> None:
    given = [f"init_from={ROOT / source}", "dcls.kernel_count=49", "dcls.init=preserve", "num_classes=12"]
    model = build._create_model(load_settings([*TINY, *given]), Accelerator(cpu=True)).eval()
    plain, _ = load_checkpoint(ROOT / "checkpoints" / "demo")
    assert len(position_groups(model)) == 2
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert (model(x) - plain(x)).norm() < 1e-5 * plain(x).norm()


def test_a_run_says_how_far_its_start_is_from_the_plain_network(
    tmp_path: Path, train_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = ROOT / "checkpoints" / "demo"
    train_here(*TINY, "dcls.init=preserve", "dcls.rule=[stages.0.depthwise]", f"init_from={source}")
    shown = capsys.readouterr().err
    found = re.search(r"1 convolutions became DCLS layers of their function; kernels changed by (\S+) of", shown)
    assert found is not None and 1e-3 < float(found[1]) < 0.3  # 24 elements for 49 taps
    model, config = load_checkpoint(tmp_path / "checkpoints" / "demo_dcls_smoke")
    assert config.dcls is not None and (config.dcls.rule, config.dcls.init) == (("stages.0.depthwise",), "preserve")
    assert len(position_groups(model)) == 1
    assert "init_from" not in config.recipe and str(source) not in config.command  # places of one machine


def test_publishing_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        publish_run(tmp_path, "x", tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b"])
def test_a_checkpoint_goes_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name for a checkpoint"):
        publish_run(tmp_path, name, tmp_path)


def test_what_is_no_checkpoint_is_not_replaced_and_that_is_told_before_the_training(
    tmp_path: Path, train_here: Callable[..., Path]
) -> None:
    (tmp_path / "library" / "thesis").mkdir(parents=True)
    (tmp_path / "library" / "thesis" / "t.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis exists and is no checkpoint"):
        train_here(*TINY, "name=thesis", f"checkpoints_dir={tmp_path}/library")
    assert (tmp_path / "library" / "thesis" / "t.tex").exists() and not (tmp_path / "run").exists()


def weights_of(folder: Path) -> str:
    return read_config(folder).weights_sha256


def test_the_checkpoint_of_another_run_is_replaced_only_where_that_is_asked_for(
    tmp_path: Path, train_here: Callable[..., Path]
) -> None:
    given = [*TINY, "name=mine", "overwrite=false"]
    checkpoint = tmp_path / "checkpoints" / "mine"
    train_here(*given, run_dir="one")
    first = weights_of(checkpoint)
    with pytest.raises(UserError, match=r"mine holds the checkpoint of another run.*overwrite=true"):
        train_here(*given, "seed=1", run_dir="two")
    assert weights_of(checkpoint) == first and not (tmp_path / "two").exists()  # before the first update
    train_here(*given, "updates=3", "resume=auto", run_dir="one")  # its own may be replaced
    longer = weights_of(checkpoint)
    train_here(*given, "seed=1", "overwrite=true", run_dir="two")
    assert len({first, longer, weights_of(checkpoint)}) == 3
    with pytest.raises(UserError, match="holds the checkpoint of another run"):
        publish_run(tmp_path / "one", "mine", tmp_path / "checkpoints")
    publish_run(tmp_path / "one", "mine", tmp_path / "checkpoints", overwrite=True)
    assert weights_of(checkpoint) == longer


def test_a_name_taken_meanwhile_costs_no_finished_run(
    tmp_path: Path,
    train_here: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*TINY, "name=mine", "overwrite=false"]
    library = tmp_path / "checkpoints"
    train_here(*given, f"checkpoints_dir={tmp_path}/elsewhere", run_dir="other")
    trained = loop.train

    def meanwhile(*running: Any) -> Any:
        shutil.copytree(tmp_path / "elsewhere" / "mine", library / "mine")
        return trained(*running)

    monkeypatch.setattr("train.run.train", meanwhile)
    train_here(*given, "seed=1")
    said = capsys.readouterr().err
    assert "It is published as mine-2 instead" in said and f"--ckpt {library}/mine-2" in said
    assert weights_of(library / "mine") == weights_of(tmp_path / "elsewhere" / "mine") != weights_of(library / "mine-2")


def test_a_refused_upload_never_shows_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise OSError("bad token secret-token-123 at the hub")

    monkeypatch.setenv("HF_TOKEN", "secret-token-123")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(UserError, match="HF_TOKEN") as caught:
        upload(tmp_path, "someone/something")
    assert "secret" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """Like those of the library below the hub's, neither an OSError nor with anything to say."""

    def fail(*given: object, **named: object) -> None:
        raise ConnectError

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(UserError, match=r"was not uploaded \(ConnectError: no message\)"):
        upload(tmp_path, "someone/something")


def test_sharding_is_refused_with_the_reason(train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    with pytest.raises(UserError, match="FSDP is not supported: the layers of a stage share one tensor"):
        train_here(*TINY)


def test_a_step_that_fp16_passes_over_does_not_count_in_the_gradient_norm(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = iter((float("inf"), 3.0, 5.0, float("inf")))
    monkeypatch.setattr(loop, "_clip", lambda session: torch.tensor(next(norms)))
    run = train_here(*TINY, "updates=4", "log.every=3", "publish=false")
    assert metrics(run, "train/grad_norm") == {3: 4.0, 4: 0.0}
    assert "Infinity" not in (run / "metrics.jsonl").read_text()


def test_fp16_without_a_gpu_is_refused(train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        train_here(*TINY, "precision=fp16")


def test_bf16_and_clipping(train_here: Callable[..., Path], tmp_path: Path) -> None:
    run = train_here(*TINY, "precision=bf16", "optim.clip_grad=1e-3", "ema.decay=0.9", "publish_weights=ema")
    assert metrics(run, "train/loss").keys() == {1, 2}
    load_checkpoint(tmp_path / "checkpoints" / "demo_dcls_smoke")


def test_how_depthwise_layers_are_computed_can_be_set(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = surgery.plain_depthwise_conv2d
    monkeypatch.setattr(surgery, "plain_depthwise_conv2d", lambda *given: calls.append(1) or plain(*given))
    auto = metrics(train_here(*TINY, run_dir="auto"), "train/loss")
    assert not calls
    assert metrics(train_here(*TINY, "depthwise=conv2d", run_dir="conv2d"), "train/loss") == pytest.approx(
        auto, rel=1e-4
    )
    assert calls
    with pytest.raises(UserError, match="depthwise=fast: take one of auto, conv2d, triton"):
        train_here(*TINY, "depthwise=fast", run_dir="fast")


def test_training_on_a_gpu_lets_cudnn_try_its_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(TINY)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    build.make_accelerator(settings)
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cuda")))
    build.make_accelerator(settings)
    assert torch.backends.cudnn.benchmark


def test_accelerates_own_configuration_does_not_compile(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    train_here(*TINY, "publish=false")


def test_positions_keep_their_layout_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    settings = load_settings([*TINY, "channels_last=true", "dcls.interpolation=gauss"])
    model = build._create_model(settings, build.make_accelerator(settings))
    groups = surgery.position_groups(model)
    for group in groups:
        assert group.sigma is not None and group.positions.is_contiguous() and group.sigma.is_contiguous()
    stem = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert groups and stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_where_nothing_compiles_one_line_says_so(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    broken = inductor.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False})
    with broken, pytest.raises(UserError, match=r"torch.compile failed: .*take compile=false"):
        train_here(*TINY, "compile=true")


@pytest.mark.slow
def test_compiled_training_is_the_same_training(train_here: Callable[..., Path], tmp_path: Path) -> None:
    plain = train_here(*TINY, run_dir="plain")
    compiled = train_here(*TINY, "compile=true", run_dir="compiled")
    assert metrics(plain, "train/loss") == pytest.approx(metrics(compiled, "train/loss"), rel=1e-3)
    load_checkpoint(tmp_path / "checkpoints" / "demo_dcls_smoke")  # names without a prefix


def test_validation_counts_each_picture_once_in_two_processes(
    tmp_path: Path, launch: Callable[..., Launched], train_here: Callable[..., Path]
) -> None:
    """Seven pictures over two processes: the same scores as one process gives them."""
    given = [*TINY, "data.val_images=7", "publish=false", "ema.decay=0.5", "optim.lr=1e-9", "eval_batch_size=2"]
    one = train_here(*given, run_dir="one")
    run = launch([*given, f"run_dir={tmp_path}/two"], 2)
    assert run.returncode == 0 and "2 process(es)" in run.output
    for name in ("val_raw/top1", "val_raw/top5"):
        assert metrics(one, name) == metrics(tmp_path / "two", name)
    for values in metrics(one, "val_raw/top1").values():
        assert values / 100 * 7 == pytest.approx(round(values / 100 * 7))


def test_modules_hide_no_library() -> None:
    """`train/` is first on the import path until main.py replaces it."""
    import importlib.metadata

    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert not {path.stem for path in (ROOT / "train").glob("*.py")} & (installed - {"train", "__init__"}) - {"main"}
