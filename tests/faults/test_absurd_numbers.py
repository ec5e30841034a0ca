"""Numbers of options and parameters that nothing could serve are refused in one line, before anything is tried."""

import pytest
import torch

from common.entry import run_command
from common.errors import UserError
from common.weights import read_weights
from evaluate.cli.main import main
from evaluate.explainers.registry import EXPLAINERS
from evaluate.metrics.registry import MEASURES

ABSURD = ["nan", "inf", "-inf", "-1", "1e300", "1000000000", "9" * 5000, "(" * 500]
NUMERIC = [
    (table.find, name, key, default)
    for table in (EXPLAINERS, MEASURES)
    for name, entry in table.items()
    for key, default in entry.parameters.items()
    if isinstance(default, (int, float, tuple)) and not isinstance(default, bool)
]


@pytest.mark.parametrize(("parse", "name", "key", "default"), NUMERIC, ids=[f"{case[1]}-{case[2]}" for case in NUMERIC])
def test_no_method_takes_an_absurd_parameter(parse, name, key, default):
    for value in ABSURD:
        if default == 0 and value == "1000000000":
            continue  # a seed
        for typed in (value, f"({value},)") if isinstance(default, tuple) else (value,):
            with pytest.raises(UserError) as caught:
                parse(f"{name}:{key}={typed}")
            assert "\n" not in str(caught.value)


def test_there_are_numeric_parameters_and_their_defaults_are_taken():
    assert len(NUMERIC) > 20
    for parse, name, key, default in NUMERIC:
        parse(f"{name}:{key}={str(default).replace(' ', '')}")


@pytest.mark.parametrize("option", ["limit", "batch-size", "micro-batch", "workers", "seed"])
@pytest.mark.parametrize("value", [str(10**20), "9" * 5000, "nan", "-1"])
def test_no_option_takes_an_absurd_number(option, value, tmp_path, capsys):
    command = ["--ckpt", str(tmp_path), "--data", "scenes", f"--{option}", value]
    assert run_command(lambda: main(command)) == 2
    told = capsys.readouterr().err
    assert option in told and told.count("\n") == 1


def test_a_million_workers_are_not_started(tmp_path):
    with pytest.raises(UserError, match="--workers 1000000: must be at least 0 and at most 256"):
        main(["--ckpt", str(tmp_path), "--data", "scenes", "--workers", "1000000"])


class Claims:
    """Becomes a bytearray larger than any memory."""

    def __reduce__(self):
        return bytearray, (1 << 60,)


def test_a_weight_file_that_claims_all_memory_is_refused(tmp_path):
    torch.save({"a": Claims()}, tmp_path / "claims.pth")
    with pytest.raises(UserError, match=r"claims\.pth"):
        read_weights(tmp_path / "claims.pth")


def test_an_old_weight_file_with_a_wrong_byte_is_read_or_refused(tmp_path):
    torch.save({"a": torch.arange(8.0)}, tmp_path / "good.pth", _use_new_zipfile_serialization=False)
    good = (tmp_path / "good.pth").read_bytes()
    assert not good.startswith(b"PK")
    refused = 0
    for place in range(0, len(good), 3):
        damaged = bytearray(good)
        damaged[place] ^= 0x40
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            read_weights(tmp_path / "damaged.pth")
        except UserError:
            refused += 1
    assert refused > 50
