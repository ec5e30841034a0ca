"""Functions found by name: what is typed, what it names, and what is said where it names nothing."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from common.errors import UserError
from evaluate.cli.arguments import parser
from evaluate.explainers import registry as explainers
from evaluate.metrics import registry as metrics
from evaluate.named import Chosen, Named, Registry
from evaluate.studies import registry as studies


def stretch(width: int, height: int = 3, text: str = "a") -> int:
    """Stretch a thing.

    By a lot.
    """
    return height


class Given(Named):
    given = frozenset({"width"})


STRETCH = Given("stretch", stretch, note="carefully")
TOOLS = Registry("tool", [STRETCH, Given("fold", lambda width: 1)])


def test_an_entry_tells_its_first_line_and_what_its_caller_does_not_give():
    assert STRETCH.summary == "Stretch a thing." and STRETCH.note == "carefully"
    assert STRETCH.parameters == {"height": 3, "text": "a"} and TOOLS["fold"].parameters == {}


def test_a_registry_keeps_the_order_and_takes_each_name_once():
    assert list(TOOLS) == ["stretch", "fold"] and len(TOOLS) == 2
    with pytest.raises(ValueError, match="tool stretch: two"):
        Registry("tool", [STRETCH, STRETCH])


def test_what_is_found_keeps_its_text_and_tells_every_setting():
    found = TOOLS.find("stretch:height=5")
    assert (found.label, found.entry, found.parameters) == ("stretch:height=5", STRETCH, {"height": 5})
    assert found.settings == {"height": 5, "text": "a"}
    assert TOOLS.find("stretch", {"text": "b"}).settings == {"height": 3, "text": "b"}
    with pytest.raises(FrozenInstanceError):
        found.label = "other"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("strech", "unknown tool 'strech'; did you mean stretch?"),
        ("saw:height=1", "unknown tool 'saw'; known: stretch, fold"),
        ("fold:height=1", "fold has no parameter 'height'; it has none"),
        ("stretch:width=1", "stretch has no parameter 'width'; it has height, text"),
        ("stretch:height=much", "stretch: height='much' is no whole number"),
        ("stretch:height", "'stretch:height': expected NAME:KEY=VALUE,..., got 'height'"),
    ],
)
def test_what_names_nothing_is_refused_with_what_is_near(text, told):
    with pytest.raises(UserError, match=re.escape(told)):
        TOOLS.find(text)


def test_one_text_several_and_names_with_parameters_are_chosen_alike():
    one = TOOLS.find("stretch")
    assert TOOLS.choose("stretch") == TOOLS.choose(["stretch", "stretch"]) == {"stretch": one}
    assert TOOLS.choose({"stretch": {"height": 2}})["stretch"].parameters == {"height": 2}
    with pytest.raises(UserError, match="has no parameter"):
        TOOLS.choose({"stretch": {"depth": 2}})


def test_what_is_chosen_is_not_parsed_again():
    chosen = Chosen("by another name", STRETCH, {"height": -7})  # which no text would give
    assert TOOLS.choose({"x": chosen})["x"] is chosen


def test_the_command_parses_each_text_and_carries_it():
    args = parser().parse_args(
        ["--explainer", "threshold_grad_cam:threshold=0.5", "rise", "--metric", "dice:percent=5"]
    )
    assert [(c.label, c.entry.name, c.parameters) for c in (*args.explainer, *args.metric)] == [
        ("threshold_grad_cam:threshold=0.5", "threshold_grad_cam", {"threshold": 0.5}),
        ("rise", "rise", {}),
        ("dice:percent=5", "dice", {"percent": 5}),
    ]
    assert parser().parse_args(["--study", "paper"]).study.entry is studies.STUDIES["paper"]
    for words, told in (
        (["--explainer", "grad_cm"], "grad_cam"),
        (["--metric", "dise"], "dice"),
        (["--study", "papr"], "paper"),
    ):
        with pytest.raises(UserError, match=f"unknown .*; did you mean {told}"):
            parser().parse_args(words)


@pytest.mark.parametrize("room", [explainers, metrics, studies])
def test_every_file_with_entries_is_in_its_registry(room):
    files = Path(room.__file__).parent.glob("*.py")
    assert {path.stem for path in files if re.search(r"^ENTRIES = ", path.read_text(), re.MULTILINE)} == set(
        room._FILES
    )
