"""How many processes a launcher has started, compared with how many know of each other."""

from __future__ import annotations

import os
import re

from common.errors import UserError


def world_size() -> int:
    """Processes that the launcher says it has started; 1 without a launcher.

    Raises:
        UserError: WORLD_SIZE is no number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise UserError(f"WORLD_SIZE={text[:40]} in the environment is no number of processes; unset it")
    return int(text)


def refuse_strangers(together: int) -> None:
    """Raise where a launcher started several processes that would each do the whole work, unaware of each other.

    Args:
        together: processes that Accelerate has joined.

    Raises:
        UserError: the launcher started more.
    """
    started = world_size()
    if started > 1 and together < started:
        raise UserError(
            f"the launcher started {started} processes (WORLD_SIZE={started}), and Accelerate joins {together}, as "
            "torchrun on a machine without a GPU makes it do. Set ACCELERATE_USE_CPU=true, take accelerate launch "
            "--cpu, or start one process"
        )
