"""A table is read as it was written, or not at all."""

from __future__ import annotations

import io
import random

import datasets
import pandas
import pyarrow.parquet as pq
import pytest

from ste_jax import records
from ste_jax.records import Judgment, Label, LabelScore
from ste_jax.system.errors import WorkError
from tests.tiny import WORDS

DRAW = random.Random(0)
ROWS = [
    Judgment(
        id=f"{number:032x}",
        prompt_id=f"{number // 2:032x}",
        judge="seed",
        iteration=1,
        sample=number % 2,
        text=" ".join(DRAW.choices(WORDS, k=30)),
        token_ids=tuple(DRAW.choices(range(50_000), k=30)),
        verdict=DRAW.choice(["A", "B", None]),
        failure=None,
        forced=False,
        finish_reason="eos",
        free_tokens=30,
    )
    for number in range(40)
]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_small_table_is_found() -> None:
    rows = [Label(id="1" * 32, category="other", difficulty=None, failure=None, text="x")]
    data = records.to_parquet(rows, Label)
    assert records.from_parquet(data, Label, "labels") == rows
    for bit in range(8 * len(data)):
        with pytest.raises(WorkError, match=r"labels is damaged .* move this one file away"):
            records.from_parquet(flipped(data, bit), Label, "labels")


def test_five_hundred_flipped_bits_of_a_larger_one_are_found() -> None:
    data = records.to_parquet(ROWS, Judgment)
    assert records.from_parquet(data, Judgment, "judgments") == ROWS
    for bit in random.Random(1).sample(range(8 * len(data)), 500):
        with pytest.raises(WorkError, match="judgments is damaged"):
            records.from_parquet(flipped(data, bit), Judgment, "judgments")


@pytest.mark.parametrize("kept", [0, 3, 12, 0.5, 0.99])
def test_a_table_cut_short_is_found(kept: float) -> None:
    data = records.to_parquet(ROWS, Judgment)
    length = int(kept * len(data)) if isinstance(kept, float) else kept
    with pytest.raises(WorkError, match="judgments is damaged"):
        records.from_parquet(data[:length], Judgment, "judgments")


def test_pages_carry_checksums_of_their_own() -> None:
    """For readers that know nothing of ours."""
    data = records.to_parquet(ROWS, Judgment)
    pages = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(5)
    middle = pages.data_page_offset + pages.total_compressed_size // 2
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(io.BytesIO(flipped(data, 8 * middle)), page_checksum_verification=True)


def test_tables_are_read_by_pandas_and_datasets(tmp_path) -> None:
    path = tmp_path / "00000-of-00001.parquet"
    path.write_bytes(records.to_parquet(ROWS, Judgment))
    texts = [row.text for row in ROWS]
    assert list(pandas.read_parquet(path)["text"]) == texts
    loaded = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(loaded["text"]) == texts


def test_a_table_of_an_earlier_version_is_read() -> None:
    """It has neither a hash nor checksums."""
    rows = [LabelScore(id="1", kind="category", label="other", logprob=-1.0, calibrated=0.5)]
    table = pq.read_table(io.BytesIO(records.to_parquet(rows, LabelScore)))
    plain = {key: value for key, value in table.schema.metadata.items() if key != records.SEALED}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(plain), buffer, compression="zstd")
    assert records.from_parquet(buffer.getvalue(), LabelScore, "scores") == rows
