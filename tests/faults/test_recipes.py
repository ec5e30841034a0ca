"""A recipe or an argument may hold anything: it is read, or refused in one line, and nothing in it is replaced."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from train.configure import RECIPES, as_dict, load_settings

GOOD = (RECIPES / "demo_dcls.yaml").read_bytes()
PIECES = [b"${", b"}", b"\0", b"\xff", b"&a ", b"*a", b"!!int x", b"!!python/name:os.system", b": ", b"- ", b"\t",
          b"[", b"{", b'"', b"'", b"|\n", b"---\n", b"9" * 5000, b".nan", b"1e400", b"null", b"\n"]  # fmt: skip


def read_or_refused(folder, content):
    """Whether a recipe of these bytes was read."""
    (folder / "odd.yaml").write_bytes(content)
    try:
        found = load_settings(["recipe=odd"], folder)
    except UserError as error:
        told = str(error)
        assert told.count("\n") == 0 and 10 < len(told) < 1000
        return False
    assert "${" not in str(as_dict(found))
    return True


damage = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 30), st.sampled_from(PIECES) | st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)  # fmt: skip
relaxed = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(damage)
def test_a_damaged_recipe_is_read_or_refused_in_one_line(tmp_path, changes):
    content = GOOD
    for place, length, piece in changes:
        content = content[:place] + piece + content[place + length :]
    read_or_refused(tmp_path, content)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["seed", "name", "model", "model_args", "dcls", "optim", "optim.args", "augment.scale", "augment.auto",
        "license", "data", "resume", "epochs", "precision", "ema", "smoke", "recipe"]  # fmt: skip


@relaxed
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), values, max_size=3))
def test_any_values_in_a_recipe_are_read_or_refused_in_one_line(tmp_path, changes):
    read_or_refused(
        tmp_path, yaml.safe_dump({"model": "demo", **changes}, allow_unicode=True).encode("utf-8", "replace")
    )


@relaxed
@given(st.sampled_from(KEYS), st.text(max_size=30) | st.sampled_from([piece.decode("latin-1") for piece in PIECES]))
def test_any_argument_is_read_or_refused_in_one_line(key, value):
    try:
        load_settings(["recipe=demo", f"{key}={value}"] if key != "recipe" else [f"recipe={value}"])
    except UserError as error:
        assert str(error).count("\n") == 0 or "no recipe given" in str(error)


def test_a_recipe_that_is_whole_is_read(tmp_path):
    assert read_or_refused(tmp_path, GOOD)


INTERPOLATIONS = [
    "${oc.env:A_SECRET}",
    "${oc.env:A_SECRET,x}",
    "a${seed}",
    "${nonsense:1}",
    "${name}",
    "${license}",
    "${",
    "\\${x}",
]


@pytest.mark.parametrize("text", INTERPOLATIONS)
@pytest.mark.parametrize("key", ["name", "license", "model_args.a", "optim.args.b"])
def test_nothing_is_replaced(tmp_path, monkeypatch, text, key):
    monkeypatch.setenv("A_SECRET", "do-not-tell")
    head, _, tail = key.rpartition(".")
    content = {"model": "demo", **({tail: text} if not head else {})}
    if head:
        content |= {"model_args": {tail: [text]}}
    assert not read_or_refused(tmp_path, yaml.safe_dump(content).encode())
    for argument in (f"{key}={text}", f'{key}="\\x24{text.partition("$")[2]}"', f"{key}=[[{text!r}]]"):
        with pytest.raises(UserError) as caught:
            load_settings(["recipe=demo", argument])
        assert "do-not-tell" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["seed: " + "9" * 5000, "a: " + "[" * 3000, "a: !!int x", "a: !!timestamp x", "a: !!float x", "a: !!bool x"]
)
def test_odd_values_of_yaml_are_refused(tmp_path, line):
    assert not read_or_refused(tmp_path, f"model: demo\n{line}\n".encode())


def test_a_number_of_5000_digits_as_an_argument_is_refused():
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(["recipe=demo", "seed=" + "9" * 5000])
