"""Settings: layers, misspelt keys, wrong values, accumulation."""

import re

import pytest
import yaml

from common.errors import UserError
from common.models.zoo import ZOO
from train.configure import RECIPES, accumulation, as_dict, dcls_spec, load_settings, recipe_names
from train.settings import Settings
from train.usage import usage


def test_the_command_line_lies_over_the_recipe_and_the_recipe_over_defaults() -> None:
    settings = load_settings(["recipe=convnext_t_dcls", "optim.lr=2e-3"])
    assert settings.optim.lr == 2e-3  # command line
    assert settings.global_batch == 4096  # recipe
    assert settings.seed == 0  # default
    assert settings.name == "convnext_t_dcls"


def test_where_no_recipes_were_installed_that_is_told(tmp_path) -> None:
    for arguments in ([], ["recipe=demo"]):
        with pytest.raises(UserError, match=f"no recipes in {tmp_path}: a plain `pip install .` leaves them out"):
            load_settings(arguments, tmp_path)


def test_smoke_lies_between_recipe_and_command_line() -> None:
    settings = load_settings(["recipe=convnext_t_dcls", "smoke=true", "updates=5"])
    assert (settings.updates, settings.data.source, settings.global_batch) == (5, "scenes:jpeg", 4)
    assert settings.name == "convnext_t_dcls_smoke"  # never published over a real checkpoint
    assert settings.augment.mixup == 0.8


@pytest.mark.parametrize(
    ("argument", "right"),
    [
        ("optim.lrate=1", "optim.lr"),
        ("optim.weight_deacy=1", "optim.weight_decay"),
        ("bath_size=1", "batch_size"),
        ("mixup=0.1", "augment.mixup"),
        ("dta.root=/x", "data.root"),
        ("dcls.kernel_cuont=3", "dcls.kernel_count"),
        ("optim.learning_rate=1", "optim.lr"),
        ("learning_rate=1", "optim.lr"),
        ("label_smoothing=0.1", "loss.smoothing"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(argument: str, right: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"did you mean {right}?")):
        load_settings(["recipe=demo_dcls", argument])


def test_a_key_that_is_like_none_points_to_the_list() -> None:
    with pytest.raises(UserError, match=re.escape("unknown key optim.wd; python train/main.py --help lists all")):
        load_settings(["recipe=demo_dcls", "optim.wd=1"])


def test_the_help_shows_every_setting_with_its_default_and_documentation() -> None:
    shown = usage()
    settings = as_dict(Settings())
    leaves = {f"{group}.{key}" for group, value in settings.items() if isinstance(value, dict) for key in value}
    leaves |= {key for key, value in settings.items() if not isinstance(value, dict) or not value}
    assert set(re.findall(r"^(\S+?)=", shown, re.MULTILINE)) == leaves
    assert "\noptim.lr=0.001\n    Peak learning rate at `global_batch`; never rescaled.\n" in shown
    assert "\nsnapshots.every_updates=null\n" in shown and "augment.scale=[0.08,1.0]" in shown
    one = usage(["optim.lr"])
    assert one == "optim.lr=0.001\n    Peak learning rate at `global_batch`; never rescaled."
    assert usage(["optim"]).count("optim.") == 7 and "data." not in usage(["optim"])
    with pytest.raises(UserError, match=r"no setting 'optin'; did you mean optim\?"):
        usage(["optin"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe given"),
        (["recipe=convnext_t_dlcs"], "did you mean convnext_t_dcls"),
        (["recipe=demo", "--smoke"], "not of the form key=value"),
        (["recipe=demo", "batch_size=many"], "batch_size"),
        (["recipe=demo", "batch_size=0"], "at least 1"),
        (["recipe=demo", "data.train_images=0"], "data.train_images=0: must be at least 1"),
        (["recipe=demo", "data.val_images=0"], "data.val_images=0: must be at least 1"),
        (["recipe=demo", "optim.weight_decay=-0.1"], "optim.weight_decay=-0.1: must be at least 0"),
        (["recipe=demo", "schedule.warmup_epochs=-1"], "schedule.warmup_epochs=-1.0: must be at least 0"),
        (["recipe=demo", "schedule.warmup_lr=-1"], "schedule.warmup_lr=-1.0: must be at least 0"),
        (["recipe=demo", "schedule.min_lr=-1"], "schedule.min_lr=-1.0: must be at least 0"),
        (["recipe=demo", "schedule.cooldown_epochs=-1"], "schedule.cooldown_epochs=-1.0: must be at least 0"),
        (["recipe=demo", "snapshots.every_minutes=-1"], "snapshots.every_minutes=-1.0: must be at least 0"),
        (["recipe=demo", "loss.smoothing=1"], "loss.smoothing=1.0: must be at least 0 and below 1"),
        (["recipe=demo", "loss.smoothing=-0.1"], "at least 0 and below 1"),
        (["recipe=demo", "optim=3"], "optim.KEY=VALUE"),
        (["recipe=demo", "precision=bf61"], "nearest: bf16"),
        (["recipe=demo", "model=resnet_50"], "did you mean resnet50"),
        (["recipe=demo", "ema.decay=null"], "publish_weights=ema"),
        (["recipe=demo", "augment.mixup=0.1", "batch_size=3"], "even"),
        (["recipe=demo", "dcls.kernel_count=3"], "surgery"),
        (["recipe=demo_dcls", "dcls.kernel_count=0"], "at least 1"),
        (["recipe=demo", "optim.lr={"], "cannot be read"),
        (["recipe=demo_dcls", "dcls.rule=*.depthwise"], "quote a value"),
        (["recipe=demo_dcls", "dcls.rule=depthwize"], "take one of depthwise, "),
        (["recipe=demo_dcls", "dcls.version=v0"], "did you mean dcls.interpolation"),
        (["recipe=demo", "pretrained=true", "init_from=x.pth"], "init_from=x.pth and pretrained=true"),
    ],
)
def test_what_cannot_be_is_refused_in_words(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_settings(arguments)


def test_surgery_can_be_changed() -> None:
    spec = dcls_spec(load_settings(["recipe=demo_dcls", "dcls.kernel_count=7"]))
    zoo = ZOO["demo_dcls"].dcls
    assert spec is not None and zoo is not None
    assert (spec.kernel_count, spec.dilated_kernel_size) == (7, zoo.dilated_kernel_size)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("stages.1.*", "stages.1.*"),
        ("[stages.0.*,stages.1.blocks.0.conv_dw]", ("stages.0.*", "stages.1.blocks.0.conv_dw")),
        ("depthwise_7x7", "depthwise_7x7"),
        ("'*.conv_dw'", "*.conv_dw"),  # YAML takes a bare star at the start for an alias
    ],
)
def test_layers_are_chosen_on_the_command_line(given: str, rule: str | tuple[str, ...]) -> None:
    spec = dcls_spec(load_settings(["recipe=demo_dcls", f"dcls.rule={given}", "dcls.init=preserve"]))
    assert spec is not None and (spec.rule, spec.init) == (rule, "preserve")


def test_accumulation_is_derived() -> None:
    settings = load_settings(["recipe=convnext_t", "batch_size=128"])
    assert accumulation(settings, 8) == 4
    assert accumulation(settings, 1) == 32


@pytest.mark.parametrize(("batch", "processes"), [(100, 8), (128, 7), (4096, 2)])
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch: int, processes: int) -> None:
    settings = load_settings(["recipe=convnext_t", f"batch_size={batch}"])
    with pytest.raises(UserError) as caught:
        accumulation(settings, processes)
    advice = re.findall(r"(global_batch|batch_size)=(\d+)", str(caught.value).partition("; take ")[2])
    assert advice
    for name, value in advice:
        fixed = load_settings(["recipe=convnext_t", f"batch_size={batch}", f"{name}={value}"])
        accumulation(fixed, processes)


# --- the recipes ------------------------------------------------------------------------------------------------


def test_every_model_of_the_zoo_has_its_recipe() -> None:
    assert set(recipe_names()) == {*ZOO, "convnext_t_dcls_from_plain"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_trains(name: str) -> None:
    settings = load_settings([f"recipe={name}"])
    assert settings.model == name.removesuffix("_from_plain")
    text = (RECIPES / f"{name}.yaml").read_text()
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "# Expected" in head and "# Cost:" in head
    command = re.search(r"# Command: .*train/main.py (.*)", head)
    assert command is not None and f"recipe={name}" in command[1].split()
    if not name.startswith("demo"):
        assert "not published" in head or re.search(r"top-1: \d\d\.\d+ % .*\(|top-1: \d\d\.\d+ % at", head)
        load_settings(command[1].split())


def test_the_demo_recipes_are_twins() -> None:
    one, two = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("demo", "demo_dcls"))
    for recipe in (one, two):
        recipe.pop("model")
        recipe.pop("positions", None)
        recipe.pop("updates"), recipe["data"].pop("train_images")  # they may be given the same time instead
    assert one == two


@pytest.mark.parametrize("name", sorted(n for n in ZOO if n.endswith("_dcls") and not n.startswith("demo")))
def test_a_dcls_recipe_keeps_the_baselines_hyperparameters(name: str) -> None:
    plain, dcls = (as_dict(load_settings([f"recipe={n}"])) for n in (name.removesuffix("_dcls"), name))
    for key in ("recipe", "name", "model", "positions", "ema"):
        plain.pop(key)
        dcls.pop(key)
    assert plain == dcls
