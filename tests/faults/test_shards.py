"""Shards of training data that are damaged or hold less than they should: one line that names file and row."""

import io
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from common.data.shards import ParquetShard, TarShard
from common.data.tables import open_hub
from common.errors import UserError
from tests.faults.damage import bounded, damaged, damages
from tests.train.test_sources import jpeg, table
from train.settings import DataSettings

PICTURES = [jpeg(value) for value in range(6)]
WHOLE = dict(zip(PICTURES, range(6)))
NESTED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(path, pictures, labels, kind=NESTED, **options):
    columns = {"image": pa.array(pictures, kind), "label": pa.array(labels, pa.int64())}
    pq.write_table(pa.table(columns), path, row_group_size=2, **options)
    return ParquetShard(str(path))


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_members(pictures=PICTURES):
    return [member for n, p in enumerate(pictures) for member in ((f"{n}.jpg", p), (f"{n}.cls", str(n).encode()))]


def read_all(shard):
    return {r.content: r.label for r in (shard.read(index) for index in range(sum(shard.blocks)))}


@pytest.mark.parametrize(
    ("picture", "label", "message"),
    [
        (None, 3, "no picture"),
        ({"bytes": None, "path": "x.jpg"}, 3, "no picture"),
        ({"bytes": b"", "path": None}, None, "label None; a label is a class index"),
        ({"bytes": PICTURES[0], "path": None}, None, "label None; a label is a class index"),
    ],
)
def test_a_row_without_picture_or_label_is_named(tmp_path, picture, label, message):
    whole = {"bytes": PICTURES[0], "path": "0.jpg"}
    shard = write_parquet(tmp_path / "a.parquet", [whole, whole, whole, picture], [1, 1, 2, label])
    assert [shard.read(n).label for n in range(3)] == [1, 1, 2]
    with pytest.raises(UserError, match=rf"a\.parquet, row 3: {message}"):
        shard.read(3)


def test_plain_bytes_may_be_missing_too(tmp_path):
    shard = write_parquet(tmp_path / "a.parquet", [PICTURES[0], None], [1, 1], pa.large_binary())
    assert shard.read(0).content == PICTURES[0]
    with pytest.raises(UserError, match=r"a\.parquet, row 1: no picture"):
        shard.read(1)


def test_a_struct_without_bytes_is_no_column_of_pictures(tmp_path):
    with pytest.raises(UserError, match=r"a\.parquet has no column of pictures; its columns are image, label"):
        write_parquet(tmp_path / "a.parquet", [{"path": "x.jpg"}], [1], pa.struct([("path", pa.string())]))


@pytest.mark.parametrize(("checksums", "start", "length"), [(False, 10, 60), (True, -1, 1)])
def test_a_damaged_row_group_is_named_with_its_row_and_the_others_are_read(tmp_path, checksums, start, length):
    """In the head of a page; in a picture, where only a checksum tells."""
    path = tmp_path / "a.parquet"
    rows = [{"bytes": picture, "path": None} for picture in PICTURES]
    write_parquet(path, rows, range(6), write_page_checksum=checksums, compression="none", use_dictionary=False)
    content = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    place = chunk.data_page_offset + start % chunk.total_compressed_size
    path.write_bytes(content[:place] + bytes(length) + content[place + length :])
    shard = ParquetShard(str(path))
    assert shard.read(0).content == PICTURES[0] and shard.read(5).content == PICTURES[5]
    with pytest.raises(UserError, match=r"a\.parquet, row 2: row group 1 is damaged .*get the shard again"):
        shard.read(2)


@pytest.mark.parametrize("names", [5, [1, 2], {"a": 1}, None, "ab"])
def test_class_names_that_are_none_count_as_unknown(tmp_path, names):
    info = b'{"info": {"features": {"label": {"names": %s}}}}' % str(names).replace("'", '"').encode()
    columns = {"image": pa.array([PICTURES[0]]), "label": pa.array([1])}
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": info}), tmp_path / "a.parquet")
    assert ParquetShard(str(tmp_path / "a.parquet")).classes is None


@pytest.mark.parametrize("second", ["3.jpg", "3.png", "3.cls", "./3.jpg"])
def test_a_key_twice_is_refused(tmp_path, second):
    path = write_tar(tmp_path / "a.tar", [*tar_members(), (second, PICTURES[0])])
    if second.startswith("./"):  # another folder, so another key
        with pytest.raises(UserError, match=r"a\.tar: \./3 has no \.cls"):
            TarShard(str(path))
        return
    kind = "cls" if second.endswith("cls") else "picture"
    with pytest.raises(UserError, match=rf"a\.tar: '{second}' is the second {kind} of its key"):
        TarShard(str(path))


def test_a_label_in_a_cls_file_comes_before_that_in_a_json(tmp_path):
    for order in (1, -1):
        labels = [("0.cls", b"4"), ("0.json", b'{"label": 7}')][::order]
        shard = TarShard(str(write_tar(tmp_path / "a.tar", [("0.jpg", PICTURES[0]), *labels])))
        assert shard.read(0).label == 4


@pytest.mark.parametrize(
    "label", [b'{"label": null}', b'{"label": 1.5}', b'{"label": true}', b"[1]", b"{}", b"[" * 10**5]
)
def test_a_json_that_holds_no_label_is_named(tmp_path, label):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", PICTURES[0]), ("0.json", label)])
    with pytest.raises(UserError, match=r"a\.tar, sample 0: .* label") as caught:
        TarShard(str(path)).read(0)
    assert len(str(caught.value)) < len(str(path)) + 100


def test_a_tar_that_shrinks_or_goes_while_it_is_used_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", tar_members())
    shard = TarShard(str(path))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"a\.tar, sample 5"):
        shard.read(5)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.tar, sample 0 cannot be read: No such file"):
        shard.read(0)


def test_a_saved_data_set_with_a_missing_picture_or_label_names_the_row(tmp_path):
    features = table(range(1)).features
    rows = {"image": [{"bytes": PICTURES[1], "path": None}, None, {"bytes": PICTURES[1], "path": "1.jpg"}]}
    both = datasets.Dataset.from_dict({**rows, "label": [1, 0, None]}, features=features)
    datasets.DatasetDict({"train": both, "validation": both}).save_to_disk(tmp_path / "set")
    records, _ = open_hub(str(tmp_path / "set"), DataSettings())
    assert records.read(0).label == 1
    with pytest.raises(UserError, match=r"split train, row 1: no picture"):
        records.read(1)
    with pytest.raises(UserError, match=r"split train, row 2 \(1\.jpg\): label None"):
        records.read(2)


# --- any damage -------------------------------------------------------------------------------------------------


def check_any(path, content, damage, opened):
    """Damage to a shard with checksums, or in its frame, is told; a tar has none for pictures and labels."""
    changed = damaged(path, content, damage)
    try:
        found = read_all(opened(str(path)))
    except UserError as error:
        assert changed and str(path) in str(error) and "\n" not in str(error)
    else:
        assert changed or found == WHOLE
        return found
    return None


@bounded
@given(damage=damages)
def test_a_damaged_parquet_shard_gives_its_pictures_or_a_line(tmp_path, damage):
    path = tmp_path / "a.parquet"
    rows = [{"bytes": picture, "path": None} for picture in PICTURES]
    write_parquet(path, rows, range(6), write_page_checksum=True, compression="none")
    check_any(path, path.read_bytes(), damage, ParquetShard)


@bounded
@given(damage=damages)
def test_a_damaged_tar_gives_as_many_samples_or_a_line(tmp_path, damage):
    path = write_tar(tmp_path / "a.tar", tar_members())
    shard = TarShard(str(path))
    assert read_all(shard) == WHOLE
    found = check_any(path, path.read_bytes(), damage, TarShard)
    assert found is None or len(found) <= 6
