"""Does a tokenizer.json give the ids of the SentencePiece model that it belongs to?

`tensorflow_text` runs SentencePiece itself; the tokenizer.json that lies beside the model, or that
`transformers` made of it, is compared with that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ste_jax.system.errors import RequestError


class Coder(Protocol):
    """What a comparison needs of a tokenizer."""

    def encode_batch(self, texts: Iterable[str], *, continues: bool = False) -> list[list[int]]:
        """Ids of texts of data."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""


_AWKWARD = (
    "",
    " ",
    "  a   b\t\tc \n\n\n d\r\n  ",
    "It isn't 1,024.5 = 2**10; see https://x.org/?q=[[A]]&r=<b>",
    "na\u00efve cafe\u0301 \u6771\u4eac\u3067\u3059 \U0001f44d\U0001f3fd\u200d\u0e01\u0e33",
    "\x00\x01\x1f\x7f\x85\u00a0\u2028\ufeff\ufffd\u2581\u2581x",
    "<s></s><unk><0x0A><|im_end|>[INST]<start_of_turn>",
)
"""Texts on which conversions are known to go wrong."""


def compare(ours: Coder, theirs: Coder, name: str) -> None:
    """Raises `RequestError` where SentencePiece, `theirs`, differs on `_AWKWARD`."""
    for continues in (False, True):
        ids, others = (each.encode_batch(_AWKWARD, continues=continues) for each in (ours, theirs))
        for text, one, other in zip(_AWKWARD, ids, others, strict=True):
            if one != other or ours.decode(one) != theirs.decode(other):
                raise RequestError(
                    f"{name}/tokenizer.model: of {text!r} SentencePiece makes {other}, and the "
                    f"tokenizer.json that is there or is made of it {one}; give the tokenizer.json "
                    "that belongs to the model"
                )


def check(directory: Path, name: str) -> None:
    """Raises `RequestError` where SentencePiece makes other ids than the tokenizer.json that is
    made of its model.

    It runs in a process of its own: TensorFlow takes nearly a gigabyte, and devices if it can.
    """
    code = "import sys; from ste_jax.tokenization.load import load_tokenizer"
    code += "; load_tokenizer(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, str(directory), "tensorflow_text"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.strip().splitlines()[-1:])
        raise RequestError(
            said.partition("RequestError: ")[2].replace(str(directory), name) or said
        )
