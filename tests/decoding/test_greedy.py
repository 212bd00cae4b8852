"""At temperature 0, `ste generate` prints what `transformers` generates from the same GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ste_jax.cli import main
from ste_jax.system import shipped
from ste_jax.tokenization.load import load_tokenizer
from tests.models import smollm2
from tests.models.reference import greedy
from tests.running import REPOSITORY


def real_prompts(number: int) -> list[str]:
    """Instructions that people wrote: of a public benchmark where it lies beside the repository,
    else the shipped ones."""
    public = REPOSITORY.parent / "shared" / "data" / "mt_bench" / "question.jsonl"
    if public.exists():
        rows = [json.loads(line) for line in public.read_text().splitlines()]
        return [row["turns"][0] for row in rows[::4]][:number]
    lines = shipped.path_of("builtin").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["instruction"] for row in rows[::9]][:number]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("number", "new_tokens"), [(3, 24), pytest.param(20, 64, marks=pytest.mark.slow)]
)
def test_smollm2_token_for_token(tmp_path: Path, number: int, new_tokens: int) -> None:
    file = Path(smollm2.source().path)
    prompts = real_prompts(number)
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(json.dumps({"prompt": text}) for text in prompts))
    words = ["generate", smollm2.NAME, "--prompts", str(asked), "--out", str(out)]
    words += ["--temperature", "0", "--max-new-tokens", str(new_tokens)]
    assert main(words) == 0
    ours = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(ours) == len(prompts) == number

    # The tokens of the prompts are ours: `transformers` cuts digits otherwise than the file says.
    tokenizer = load_tokenizer(file)
    reference = smollm2.reference()
    for text, row in zip(prompts, ours, strict=True):
        ids = tokenizer.prompt_ids([{"role": "user", "content": text}])
        theirs = greedy(reference, ids, new_tokens, tokenizer.eos_ids)
        assert (row["n_tokens"], row["text"]) == (len(theirs), tokenizer.decode(theirs)), text
