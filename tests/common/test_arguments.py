"""Command lines: values that add up, and one line for what is wrong."""

import pytest

from common.arguments import Adding, ArgumentParser
from common.errors import UserError
from evaluate.cli.main import main as evaluate
from evaluate.clickme.command import main as clickme
from train.publish import main as publish


@pytest.fixture
def parser():
    p = ArgumentParser(prog="tool")
    p.add_argument("--name", nargs="+", action=Adding, default=["usual"])
    p.add_argument("--one", action=Adding, default=[])
    p.add_argument("--count", type=int)
    return p


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ["usual"]),
        ("--name a", ["a"]),
        ("--name a b --count 1 --name c", ["a", "b", "c"]),
        ("--name usual --name a", ["usual", "a"]),
    ],
)
def test_values_of_an_option_given_twice_add_up_and_replace_the_default(parser, words, names):
    assert parser.parse_args(words.split()).name == names
    assert parser.parse_args([]).name == ["usual"]  # a parser used again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--names a", "unknown option --names; did you mean --name"),
        ("--names=a", "unknown option --names; did you mean --name"),
        ("--zzzz", "unknown option --zzzz; known: --help, --name, --one, --count"),
        ("a", "unexpected word 'a'; tool --help lists the options"),
        ("--count many", "invalid int value: 'many'; tool --help lists the options"),
    ],
)
def test_what_is_wrong_is_an_error_of_one_line(parser, words, message, capsys):
    with pytest.raises(UserError, match=message) as caught:
        parser.parse_args(words.split())
    assert "\n" not in str(caught.value) and not capsys.readouterr().err


def test_an_option_of_one_value_adds_up_too_and_takes_no_positional(parser):
    parser.add_argument("files", nargs="+")
    args = parser.parse_args(["--one", "abc", "a.jpg", "--one", "d", "--name", "x"])
    assert (args.one, args.files) == (["abc", "d"], ["a.jpg"])


def test_options_of_subcommands_are_known():
    p = ArgumentParser(prog="tool")
    command = p.add_subparsers().add_parser("fetch")
    command.add_argument("--shards", nargs="+", action=Adding, default=[])
    assert p.parse_args(["fetch", "--shards", "1", "--shards", "2"]).shards == ["1", "2"]
    with pytest.raises(UserError, match="unknown option --shard-numbers; did you mean --shards"):
        p.parse_args(["fetch", "--shard-numbers", "1"])


@pytest.mark.parametrize(
    ("command", "words", "right"),
    [
        (evaluate, ["--explainers", "grad_cam"], "--explainer"),
        (evaluate, ["--checkpoint", "x"], "--ckpt"),
        (evaluate, ["explain", "a.jpg", "--ckpt", "x", "--explainers", "grad_cam"], "--explainer"),
        (clickme, ["download", "--to", "x", "--shard-numbers", "1"], "--shards"),
        (publish, ["run", "--name", "x", "--checkpoint-folder", "y"], "--checkpoints"),
    ],
)
def test_every_command_names_the_option_that_was_meant(command, words, right):
    with pytest.raises(UserError, match=f"unknown option {words[-2]}; did you mean {right}"):
        command(words)
