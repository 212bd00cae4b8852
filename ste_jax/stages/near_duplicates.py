"""Which texts say nearly the same?

MinHash signatures (Broder 1997) with banding find the candidates in memory of a few hundred bytes
per text; the candidates' texts are then read again and compared exactly, by the Jaccard similarity
of their pairs of words. Scripts that are written without spaces have no words to find: there it is
runs of a few characters, each beginning one further."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from ste_jax.system import hashing

VERSION = 2
HASHES = 64
BANDS = 16
PAIRS_PER_BUCKET = 20_000
"""About how many pairs one bucket may give; 140 texts that agree in a band give as many."""
_PRIME = (1 << 61) - 1
_HAN_AND_KANA = (
    "\u3005-\u3007\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f"
    "\U00020000-\U0003ffff"
)
_THAI_AND_ALIKE = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u0edc-\u0edf\u1000-\u103f\u1050-\u109f"
    "\u1780-\u17d3\u17dc-\u17dd\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"
)
"""Thai, Lao, Burmese, Khmer: they are written in letters, so a word has about twice as many
characters as in Chinese."""
_TOKEN = re.compile(
    f"(?P<two>[{_HAN_AND_KANA}]+)|(?P<three>[{_THAI_AND_ALIKE}]+)"
    rf"|[^\W{_HAN_AND_KANA}{_THAI_AND_ALIKE}]+"
)


def _tokens(text: str) -> list[str]:
    """The words of a text in order, in lower case; in scripts without spaces, runs of two or three
    characters."""
    found: list[str] = []
    for match in _TOKEN.finditer(text.lower()):
        run, size = match[0], {"two": 2, "three": 3}.get(match.lastgroup or "", len(match[0]))
        found += [run[start : start + size] for start in range(max(1, len(run) - size + 1))]
    return found


def shingles(text: str) -> frozenset[str]:
    """The pairs of neighbouring words of a text, in lower case. A text of a single word gives that
    word, a text without words itself."""
    words = _tokens(text)
    if len(words) < 2:
        return frozenset(words or [" ".join(text.split())])
    return frozenset(f"{first} {second}" for first, second in itertools.pairwise(words))


def words(text: str) -> frozenset[str]:
    """The words of a text in lower case; see `_tokens` for scripts without spaces."""
    return frozenset(_tokens(text))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """The size of the intersection over that of the union; 1 for two empty sets."""
    if not first and not second:
        return 1.0
    return len(first & second) / len(first | second)


def drop_near_duplicates(
    texts: Callable[[], Iterable[tuple[str, str]]],
    threshold: float,
    contexts: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Finds the ids whose text is nearly that of a kept one; gives each with the id of that one.

    `texts` gives (id, text) and is called twice. `contexts` maps an id to the context of its text:
    texts of different contexts, or of which only one has a context, are never alike. Of two alike
    the one whose id comes first is kept, so the result does not depend on the order of reading. A
    `threshold` of 1 or more switches this off.
    """
    if threshold >= 1:
        return {}
    candidates = _candidates(texts(), contexts or {})
    involved = {id for pair in candidates for id in pair}
    sets = {id: shingles(text) for id, text in texts() if id in involved}
    neighbours: dict[str, set[str]] = defaultdict(set)
    for first, second in candidates:
        if jaccard(sets[first], sets[second]) >= threshold:
            neighbours[max(first, second)].add(min(first, second))
    dropped: dict[str, str] = {}
    for id in sorted(neighbours):
        standing = sorted(other for other in neighbours[id] if other not in dropped)
        if standing:
            dropped[id] = standing[0]
    return dropped


def _candidates(
    texts: Iterable[tuple[str, str]], contexts: Mapping[str, str]
) -> set[tuple[str, str]]:
    """Pairs of ids of one context that agree in at least one band of their signatures."""
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 1 << 31, HASHES, dtype=np.uint64)
    offsets = generator.integers(0, _PRIME, HASHES, dtype=np.uint64)
    buckets: dict[tuple[int, bytes, str], list[str]] = defaultdict(list)
    for id, text in texts:
        signature = _signature(shingles(text), factors, offsets)
        for band, part in enumerate(np.split(signature, BANDS)):
            buckets[band, part.tobytes(), contexts.get(id, "")].append(id)
    pairs: set[tuple[str, str]] = set()
    for ids in buckets.values():
        ids.sort()
        # all pairs, but in a bucket that a common opening has filled only with near neighbours
        reach = max(1, PAIRS_PER_BUCKET // len(ids))
        for distance in range(1, min(reach, len(ids) - 1) + 1):
            pairs.update(zip(ids, ids[distance:], strict=False))
        pairs.update((ids[0], other) for other in ids[1:])
    return {pair for pair in pairs if pair[0] != pair[1]}


def _signature(
    items: frozenset[str], factors: npt.NDArray[np.uint64], offsets: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    hashes = np.array([hashing.number(item, 4) for item in items], np.uint64)
    # factor < 2^31 and hash < 2^32, so the product does not overflow 64 bits
    mixed = (hashes[None, :] * factors[:, None] + offsets[:, None]) % np.uint64(_PRIME)
    return np.asarray(mixed.min(axis=1), np.uint64)
