"""Every number among the settings has bounds, and neither NaN nor infinity passes."""

import dataclasses
import re
import typing

import pytest

from common.errors import UserError
from train.bounds import Bounds, all_bounds, check_numbers
from train.configure import load_settings, recipe_names
from train.settings import Settings

BOUNDS = all_bounds(Settings())
ABSURD = ("nan", "inf", "-inf", "-1", "1e300", str(10**20))


def numeric_keys(kind=Settings, prefix=""):
    """Dotted names of the settings that are numbers, or lists of them, by what the class says."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from numeric_keys(hint, f"{prefix}{field.name}.")
        elif {int, float} & {hint, *typing.get_args(hint)}:
            yield f"{prefix}{field.name}"


def test_every_numeric_setting_has_bounds_and_no_other():
    assert set(numeric_keys()) == set(BOUNDS)
    assert len(BOUNDS) > 40


@pytest.mark.parametrize("key", sorted(numeric_keys()))
def test_no_absurd_number_is_taken(key):
    for value in ABSURD:
        typed = f"[{value},{value}]" if key == "augment.scale" else value
        with pytest.raises(UserError, match=re.escape(key)):
            load_settings(["recipe=demo", f"{key}={typed}"])


@pytest.mark.parametrize("key", sorted(numeric_keys()))
def test_the_bounds_hold_the_default_and_themselves(key):
    bounds = BOUNDS[key]
    assert bounds.hold(bounds.least) is not bounds.above and bounds.hold(bounds.most) is not bounds.below
    assert not bounds.hold(float("nan"))
    value = Settings()
    for part in key.split("."):
        value = getattr(value, part)
    assert value is None or all(map(bounds.hold, value if isinstance(value, list) else [value]))


@pytest.mark.parametrize(
    "argument",
    [
        "optim.args={betas: [nan, nan]}",
        "optim.args={betas: [0.9, .inf]}",
        "optim.args.eps=nan",
        "model_args.drop_path_rate=nan",
        "model_args={a: {b: [1, [2, -inf]]}}",
        "dcls.sigma=nan",
        f"model_args.depth={10**40}",
        "optim.clip_grad=0",
        "optim.layer_decay=0",
        "augment.scale=[0,1]",
        "augment.scale=[0.5,0.1]",
        "augment.scale=[0.1,0.2,0.3]",
        f"seed={2**63}",
        "ema.decay=1",
    ],
)
def test_numbers_within_lists_and_at_the_edge_are_refused_in_one_line(argument):
    with pytest.raises(UserError) as caught:
        load_settings(["recipe=demo_dcls", argument])
    assert argument.partition("=")[0].partition(".")[0] in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_largest_seed_and_useful_edges_are_taken():
    given = [f"seed={2**63 - 1}", "optim.clip_grad=1e-3", "augment.scale=[1,1]", "log.validate_every=0", "epochs=0"]
    assert load_settings(["recipe=demo", *given]).seed == 2**63 - 1


@pytest.mark.parametrize(
    "auto",
    ["nonsense", "rand-nonsense", "rand-m9-x3", "rand9", "augmix-q1", "v9", "''", "rand-m9999999"],
)
def test_an_unknown_augmentation_names_the_known_ones(auto):
    with pytest.raises(UserError, match=r"augment\.auto=.*rand-m9-mstd0\.5-inc1 .*augmix-m5-w4-d2, original"):
        load_settings(["recipe=demo", f"augment.auto={auto}"])


@pytest.mark.parametrize(
    "auto", ["rand", "rand-m15-n3-p0.7-mstd0.5-mmax12-inc1", "augmix-m5-w4-d2", "3a", "v0r-mstd0.5"]
)
def test_a_known_augmentation_is_taken(auto):
    assert load_settings(["recipe=demo", f"augment.auto={auto}"]).augment.auto == auto


def test_every_recipe_is_within_the_bounds():
    for name in recipe_names():
        load_settings([f"recipe={name}"])


def test_a_loss_term_keeps_the_bounds_of_its_own_settings():
    @dataclasses.dataclass
    class Term:
        weight: float = dataclasses.field(default=0.0, metadata={"bounds": Bounds(0, 5)})

    @dataclasses.dataclass
    class Group:
        term: Term

    check_numbers(Group(Term(5)))
    for value in (-1, 5.1, float("nan")):
        with pytest.raises(UserError, match=rf"term\.weight={value}: must be at least 0 and at most 5"):
            check_numbers(Group(Term(value)))
