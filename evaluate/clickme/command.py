"""`python -m evaluate.clickme`: fetch the published ClickMe shards, and turn shards into a Parquet data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from common.arguments import Adding, ArgumentParser
from common.data.clickme import PUBLISHED_AT, PUBLISHED_SHARDS
from common.data.manifest import entries_of, read_manifest, write_manifest
from common.data.tfrecord import index_records
from common.download import download
from common.errors import UserError
from common.lock import locked
from evaluate.clickme.parquet import convert

LARGEST_SHARD = 1 << 30
"""Bytes; the published ones have a small part of it."""


def parser() -> ArgumentParser:
    """The options of `python -m evaluate.clickme`."""
    p = ArgumentParser(prog="python -m evaluate.clickme", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("download", help="fetch published shards; goes on where it was interrupted")
    fetch.add_argument("--split", choices=list(PUBLISHED_SHARDS), default="val", help="default: %(default)s")
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR", help="shards come into DIR/SPLIT")
    fetch.add_argument("--shards", type=int, nargs="+", action=Adding, metavar="N", help="only these numbers")
    to_parquet = commands.add_parser("convert", help="write Parquet that datasets.load_dataset(DIR) reads")
    to_parquet.add_argument("--data-root", type=Path, required=True, help="folder of shards, or one shard")
    to_parquet.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    to_parquet.add_argument("--skip-bad", action="store_true", help="leave damaged records out and list them")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; returns 0.

    Raises:
        UserError: what was asked for cannot be done.
    """
    args = parser().parse_args(argv)
    if args.command == "download":
        shards = download_split(args.split, args.to.expanduser(), args.shards)
        records = sum(len(index_records(shard).offsets) for shard in shards)
        print(f"{len(shards)} shards with {records:,} records in {args.to}/{args.split}: --data-root {args.to}")
        return 0
    to = args.to.expanduser().absolute()
    to.parent.mkdir(parents=True, exist_ok=True)
    with locked(to.parent / f".{to.name}.lock", f"--to {args.to}", "wait for its end, or take another folder"):
        result = convert(args.data_root.expanduser(), args.to.expanduser(), args.skip_bad)
    for problem in result.bad:
        print(f"left out: {problem}", file=sys.stderr)
    print(
        f"{result.records:,} records of split {result.split!r} ({len(result.bad)} left out): "
        f'datasets.load_dataset("{args.to}", split="{result.split}")'
    )
    return 0


def shard_url(split: str, name: str) -> str:
    """Where a shard of the `val` or `train` split is published."""
    return f"https://{PUBLISHED_AT}/{split}/{name}"


def download_split(split: str, to: Path, numbers: Sequence[int] | None = None) -> list[Path]:
    """Fetch the shards of a split that are not there yet.

    A shard counts as there if its records fill it to the last byte and it is what `manifest.json` beside it lists;
    another one is fetched again. What the server announces as its size is checked, and so is the framing of its
    records; then the shard is listed.

    Args:
        split: `val` or `train`.
        to: folder; the shards lie in its subfolder of the split's name.
        numbers: of the shards; all by default.

    Returns:
        The shards, in order of number.

    Raises:
        UserError: a number that is not published, no connection, or no shard at the address.
    """
    count = PUBLISHED_SHARDS[split]
    numbers = range(count) if numbers is None else sorted(set(numbers))
    if unknown := [number for number in numbers if not 0 <= number < count]:
        raise UserError(f"--shards {unknown}: split {split!r} has the shards 0 to {count - 1}")
    shards = []
    listed = read_manifest(to / split) or {}
    for number in tqdm(numbers, desc=f"{split} shards", unit="shard", disable=None):
        name = f"{split}-{number}.tfrecords"
        shard = to / split / name
        if not (is_whole(shard) and listed.get(name) in (None, entries_of(shard.parent, [name])[name])):
            shard.unlink(missing_ok=True)
            download(shard_url(split, name), shard, at_most=LARGEST_SHARD)
            if not is_whole(shard):
                shard.unlink()
                raise UserError(
                    f"{shard_url(split, name)} is no TFRecord shard; nothing was kept of it. Try again later"
                )
        shards.append(shard)
    if shards:
        write_manifest(to / split, [shard.name for shard in shards], listed)
    return shards


def is_whole(shard: Path) -> bool:
    """Whether a shard exists and its records, at least one, fill it exactly; payloads are not read."""
    try:
        return shard.is_file() and len(index_records(shard).offsets) > 0
    except UserError:
        return False
