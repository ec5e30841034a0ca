"""ClickMe shards as a Parquet data set for `datasets.load_dataset`, without TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetInfo, Features, Image, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData
from tqdm import tqdm

from common.atomic import atomic_folder, write_text
from common.data.clickme import PUBLISHED_AT, ClickMe, find_shards
from common.data.clickme_table import LEFT_OUT, SPLITS
from common.data.folders import names_of_classes
from common.data.manifest import write_manifest
from common.data.tfrecord import index_records, parse_example, read_record
from common.errors import UserError

ROWS_IN_GROUP = 256
"""Rows written at a time, some 9 MB: what a conversion, or a reader of single rows, holds in memory."""


class Conversion(NamedTuple):
    """What a conversion did."""

    split: str
    records: int
    bad: list[str]
    """What was wrong with each record that was left out."""


def class_names() -> list[str]:
    """A distinct English name for each ImageNet class, in order of index; namesakes get their number."""
    names = names_of_classes(1000)
    assert names is not None
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]


def features() -> Features:
    """Columns: `image` and `heatmap` (the JPEG files of the shards, untouched), `label`, `image_id`."""
    return Features(
        {
            "image": Image(),
            "heatmap": Image(),
            "label": ClassLabel(names=class_names()),
            "image_id": Value("string"),
        }
    )


def convert(root: Path, to: Path, skip_bad: bool = False) -> Conversion:
    """Write the shards that `ClickMe(root)` reads as `to/data/SPLIT-00000-of-00017.parquet` and so on.

    One file a shard, with constant memory, and `manifest.json` beside them; every record's checksum, features and
    pictures are checked on the way. The folder appears when all is written.

    Args:
        root: as for `ClickMe`.
        to: the folder to make; it must not exist, or be empty.
        skip_bad: leave records out that cannot be used, instead of stopping at the first.

    Raises:
        UserError: no shards, a folder in the way, a shard that is cut off, or (without `skip_bad`) a bad record.
    """
    shards = find_shards(root)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists already; give --to a folder that does not exist yet, or an empty one")
    split = SPLITS.get(shards[0].stem.partition("-")[0], "train")
    columns = features()
    bad: list[str] = []
    records = 0
    total = sum(len(index_records(shard).offsets) for shard in shards)
    with atomic_folder(to, lasting=True) as folder, tqdm(total=total, unit="record", disable=None) as bar:
        (folder / "data").mkdir()
        for number, shard in enumerate(shards):
            path = folder / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            rows = _rows(shard, bad if skip_bad else None, bar)
            records += _write_parquet(path, rows, columns, bad)
        write_manifest(folder / "data", sorted(path.name for path in (folder / "data").iterdir()))
        write_text(folder / "README.md", _card(split, columns, records, len(bad), ClickMe(root).missing_shards))
    return Conversion(split, records, bad)


def _rows(shard: Path, bad: list[str] | None, bar: tqdm) -> Iterator[dict[str, Any]]:
    """The records of a shard with their pictures as stored; problems go to `bad`, or are raised without it."""
    decoded = ClickMe(shard)
    for number, offset in enumerate(index_records(shard).offsets):
        bar.update()
        try:
            record = decoded[number]
        except UserError as error:
            if bad is None:
                raise UserError(f"{error} To leave such records out: --skip-bad") from error
            bad.append(str(error))
            continue
        stored = parse_example(read_record(shard, int(offset), number))
        name = record.image_id.replace("/", "_")
        yield {
            "image": {"bytes": stored["image"][0], "path": f"{name}.jpg"},
            "heatmap": {"bytes": stored["heatmap"][0], "path": f"{name}_heatmap.jpg"},
            "label": record.label,
            "image_id": record.image_id,
        }


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], columns: Features, bad: Sequence[str]) -> int:
    """Returns the number of rows; `bad` grows as they are taken, and the file says by how many."""
    schema, count, before = columns.arrow_schema, 0, len(bad)
    # JPEG does not shrink; a reader that looks at checksums finds what a disk has damaged.
    with pq.ParquetWriter(path, schema, compression="none", write_page_checksum=True) as writer:
        while group := list(islice(rows, ROWS_IN_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
        writer.add_key_value_metadata({LEFT_OUT: str(len(bad) - before)})
    return count


def _card(split: str, columns: Features, records: int, left_out: int, missing: list[str]) -> str:
    """The README that tells people and `datasets` what the folder holds."""
    metadata = DatasetCardData(
        pretty_name="ClickMe",
        configs=[{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*.parquet"}]}],
    )
    DatasetInfosDict({"default": DatasetInfo(features=columns)}).to_dataset_card_data(metadata)
    notes = [f"{records:,} records of the `{split}` split."]
    if left_out:
        notes.append(f"{left_out} records were left out, being damaged.")
    if missing:
        notes.append(f"Not complete: {len(missing)} of the published shards are absent.")
    return f"""---
{metadata.to_yaml()}
---
# ClickMe

Photographs of ImageNet with maps of where people look for the object, from Fel et al., "Harmonizing the object
recognition strategies of deep neural networks with humans" (NeurIPS 2022, arXiv 2211.04533). Converted by
`python -m evaluate.clickme convert` from the shards at
https://{PUBLISHED_AT}.

{" ".join(notes)}

| column | what |
|---|---|
| `image` | photograph, 256x256, colour; the JPEG file of the shard, untouched |
| `heatmap` | the human map, 256x256, grey; likewise, before the blur that scores are computed with |
| `label` | ImageNet class, 0 to 999 |
| `image_id` | shard and place in it |

```python
from datasets import load_dataset

clickme = load_dataset("PATH/OF/THIS/FOLDER", split="{split}")
```
"""
