"""Are pieces named by all that stands before them, and does the store stay within its bound?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ste_jax.decoding.chunks import ChunkStore, cut

TOKENS = st.lists(st.integers(0, 3), max_size=20)


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_two_prompts_share_a_piece_exactly_where_they_are_alike_up_to_its_end(
    one: list[int], two: list[int], size: int
) -> None:
    for a, b in zip(cut(one, size), cut(two, size), strict=False):
        assert a.start == b.start and a.start % size == 0
        end = a.start + max(len(a.tokens), len(b.tokens))
        assert (a.name == b.name) == (one[:end] == two[:end])


@given(TOKENS, st.integers(1, 5))
def test_the_pieces_make_up_the_prompt(tokens: list[int], size: int) -> None:
    pieces = cut(tokens, size)
    assert [token for piece in pieces for token in piece.tokens] == tokens
    assert all(len(piece.tokens) == size for piece in pieces[:-1])


def test_the_least_recently_used_goes_first() -> None:
    store = ChunkStore(2)
    store.put(b"a", 1, "x")
    store.put(b"b", 2, "x")
    assert store.get(b"a", "x") == 1
    store.put(b"c", 3, "y")
    assert [store.get(name, "z") for name in (b"a", b"b", b"c")] == [1, None, 3]
    assert len(store) == 2


def test_release_drops_what_nobody_else_has_asked_for() -> None:
    store = ChunkStore(9)
    store.put(b"shared", 1, "x")
    store.put(b"own", 2, "x")
    store.get(b"shared", "y")
    store.release("x")
    store.release("x")
    assert [store.get(name, "z") for name in (b"shared", b"own")] == [1, None]


def test_a_released_or_evicted_piece_can_come_back() -> None:
    store = ChunkStore(1)
    store.put(b"a", 1, "x")
    store.put(b"b", 2, "x")
    store.put(b"a", 3, "x")
    store.release("x")
    assert len(store) == 0
    store.put(b"a", 4, "y")
    assert store.get(b"a", "y") == 4


def test_a_store_of_no_room_keeps_nothing() -> None:
    store = ChunkStore(0)
    store.put(b"a", 1, "x")
    assert store.get(b"a", "x") is None
