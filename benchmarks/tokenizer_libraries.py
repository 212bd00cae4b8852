"""Which library encodes and decodes faster: `tokenizers`, or SentencePiece in tensorflow-text?

`python benchmarks/tokenizer_libraries.py` trains a SentencePiece BPE of 32,000 pieces, as Llama 2
has, on the source of Python's standard library, reads it with both, and times them in turn on texts
of the length of a judge's prompt, in batches and one by one. `--directory DIR` takes the
`tokenizer.model` of a published model instead. Its exit status is 1 if the two differ in an id or
in a decoded text.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent.parent))

from ste_jax.reporting.tables import markdown
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Library, Tokenizer

LENGTH = 4000
"""Characters of one text, about a thousand tokens."""
PIECES = 32_000
_TEMPLATE = "{% for m in messages %}{{ '<s>' + m['content'] + '</s>' }}{% endfor %}"


def sources() -> list[str]:
    """Pieces of the standard library's source, `LENGTH` characters each."""
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in file.parts:
            text = file.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
            found += [text[at : at + LENGTH] for at in range(0, len(text) - LENGTH, LENGTH)]
    return found


def train(texts: Sequence[str], directory: Path) -> Path:
    """A `tokenizer.model` as Llama 2's in `directory`."""
    import sentencepiece

    out = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=out,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    directory.joinpath("tokenizer.model").write_bytes(out.getvalue())
    directory.joinpath("chat_template.jinja").write_text(_TEMPLATE)
    return directory


def seconds(times: int, *works: Callable[[], Any]) -> list[float]:
    """The median seconds of each of `works`, done in turn so many times."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for work, each in zip(works, taken, strict=True):
            began = time.perf_counter()
            work()
            each.append(time.perf_counter() - began)
    return [statistics.median(each) for each in taken]


def main() -> int:
    """Prints a table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="of a published model's tokenizer.model")
    parser.add_argument("--texts", type=int, default=500, help="how many are encoded")
    parser.add_argument("--times", type=int, default=5, help="how often each is timed")
    options = parser.parse_args()
    texts = sources()
    # Every eighth is kept from training, as far as they are wanted.
    held, others = texts[::8][: options.texts], [t for i, t in enumerate(texts) if i % 8]
    with tempfile.TemporaryDirectory() as made:
        if options.directory is None:
            print(f"training {PIECES} pieces on {len(others)} texts", file=sys.stderr)
        path = options.directory or train(others[:1500], Path(made))
        read: dict[str, Tokenizer] = {
            library: load_tokenizer(path, library) for library in get_args(Library)
        }
    ours, theirs = read["tokenizers"], read["tensorflow_text"]
    ids = ours.encode_batch(held)
    same = ids == theirs.encode_batch(held) and ours.decode_batch(ids) == theirs.decode_batch(ids)

    def row(name: str, work: Callable[[Tokenizer], Any]) -> dict[str, Any]:
        one, other = seconds(options.times, lambda: work(ours), lambda: work(theirs))
        tokens = sum(map(len, ids)) / 1e6
        return {
            "": name,
            "tokenizers": f"{tokens / one:.2f}",
            "tensorflow-text": f"{tokens / other:.2f}",
            "ratio": f"{other / one:.2f}",
        }

    rows = [
        row("encode, a batch", lambda each: each.encode_batch(held)),
        row("encode, one by one", lambda each: [each.encode(text) for text in held]),
        row("decode, a batch", lambda each: each.decode_batch(ids)),
        row("decode, one by one", lambda each: [each.decode(one) for one in ids]),
    ]
    print(
        f"Millions of tokens a second: {len(held)} texts of {LENGTH} characters, "
        f"{sum(map(len, ids)):,} tokens of {ours.vocab_size:,}, {os.cpu_count()} cores.\n"
    )
    print(markdown(rows))
    if not same:
        print("the two libraries differ", file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
