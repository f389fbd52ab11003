from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.repair.parquet_rescue import rescue_file

VECTOR = pa.list_(pa.float32(), 6)
SCHEMA = pa.schema({"action": VECTOR, "timestamp": pa.float32(), "episode_index": pa.int64()})


def episode(number: int, frames: int) -> pa.Table:
    random = np.random.default_rng(number)
    columns = {
        "action": list(random.normal(size=(frames, 6)).astype(np.float32)),
        "timestamp": np.arange(frames, dtype=np.float32),
        "episode_index": np.full(frames, number),
    }
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def unfinished(file: Path, tables: list[pa.Table]) -> bytes:
    """What is in `file` before the writer of `tables` is closed."""
    writer = pq.ParquetWriter(file, tables[0].schema, compression="snappy", use_dictionary=True)
    for table in tables:
        writer.write_table(table)
    content = file.read_bytes()
    writer.close()
    return content


def rescued(tmp_path: Path, content: bytes, schema: pa.Schema = SCHEMA) -> pa.Table | None:
    file, out = tmp_path / "torn.parquet", tmp_path / "out.parquet"
    file.write_bytes(content)
    return pq.read_table(out) if rescue_file(file, schema, out) else None


def test_all_that_was_written_is_read(tmp_path: Path) -> None:
    # The second is long enough for several pages, and for more values than a dictionary may have.
    tables = [episode(0, 40), episode(1, 60_000), episode(2, 1)]
    found = rescued(tmp_path, unfinished(tmp_path / "file.parquet", tables))
    assert found is not None
    assert found.to_pylist() == pa.concat_tables(tables).to_pylist()


def test_pictures_are_read(tmp_path: Path) -> None:
    pictures = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": bytes([k]) * 3000, "path": None} for k in range(50)]
    table = pa.table({"picture": pa.array(rows, pictures), "episode_index": np.arange(50)})
    found = rescued(tmp_path, unfinished(tmp_path / "file.parquet", [table, table]), table.schema)
    assert found is not None
    assert found["picture"].to_pylist() == rows + rows


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three episodes of 8 frames."""
    return unfinished(tmp_path_factory.mktemp("file") / "file.parquet", [episode(i, 8) for i in range(3)])


@given(cut=st.floats(0, 1), noise=st.binary(max_size=40))
def test_what_is_cut_or_followed_by_noise_is_read_to_its_last_whole_episode(
    content: bytes, tmp_path_factory: pytest.TempPathFactory, cut: float, noise: bytes
) -> None:
    whole = pa.concat_tables([episode(i, 8) for i in range(3)]).to_pylist()
    found = rescued(tmp_path_factory.mktemp("cut"), content[: int(cut * len(content))] + noise)
    if found is not None:
        assert found.num_rows in (8, 16, 24)
        assert found.slice(0, 8).to_pylist() == whole[:8]


@given(content=st.binary(max_size=200))
def test_what_is_no_table_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert rescued(tmp_path_factory.mktemp("noise"), b"PAR1" + content) is None


def test_columns_without_a_dictionary_are_refused(tmp_path: Path) -> None:
    table = pa.table({"done": [True, False]})
    assert rescued(tmp_path, unfinished(tmp_path / "file.parquet", [table]), table.schema) is None


def test_a_page_that_ends_before_it_begins_ends_the_search(tmp_path: Path) -> None:
    header = bytes.fromhex("150415 00150d00".replace(" ", ""))  # a dictionary page of -7 bytes
    assert rescued(tmp_path, b"PAR1" + header * 3) is None
    nested = b"PAR1" + bytes([0x1C]) * 100_000  # structs in structs
    assert rescued(tmp_path, nested) is None
