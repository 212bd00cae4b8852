"""Are hashes what they were when the runs that lie on disks were made?"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.config.identity import fingerprint
from ste_jax.decoding.rows import hash_id
from ste_jax.records import content_id, hash_order, shard_of
from ste_jax.stages.roles import sample_key
from ste_jax.system import hashing


def test_today_s_hashes_are_kept(tmp_path: Path) -> None:
    # Written down at the commit before `hashing` was there: they lie in runs, and never change.
    assert content_id("prompts", "a", 1) == "9fca6abdc29f452134372315340279c0"
    assert content_id("x", "half a pair: \ud83d") == "3545ddfcb2b46497a8157fc4ce8d089f"
    assert (shard_of("abc", 1000), hash_order("abc", "sample")) == (487, 11360081758571644503)
    assert (sample_key(1, "annotate", 2), hash_id("abc")) == (370858697, (3636139224, 869635417))
    assert (
        fingerprint("stage", 1, {"knob": 2}, "model", ["input"])
        == "0488599ea1edad24a2f4e00ed64c9802"
    )


@given(st.text() | st.binary(), st.integers(1, 64))
def test_it_is_blake2b(data: str | bytes, size: int) -> None:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    wanted = hashlib.blake2b(raw, digest_size=size).digest()
    assert hashing.digest(data, size) == wanted
    assert hashing.hex_digest(data, size) == wanted.hex()
    assert hashing.number(data, size) == int(wanted.hex(), 16)
    fed = hashing.hasher(size)
    fed.update(raw[:3])
    fed.update(raw[3:])
    assert (fed.digest(), fed.hexdigest()) == (wanted, wanted.hex())
    assert hashing.number31(data) == hashing.number(data, 4) // 2 < 2**31
    assert hashing.number(data, size, purpose=b"x") != hashing.number(data, size) or size < 4


def test_a_file_s_hash_is_its_content_s(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 1000)
    assert hashing.file_digest(tmp_path / "file") == hashing.hex_digest(b"content" * 1000, 64)
    with pytest.raises(OSError):
        hashing.file_digest(tmp_path / "absent")
