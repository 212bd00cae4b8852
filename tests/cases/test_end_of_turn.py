"""A completion that is ended for the model ends as its chat template ends an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ste_jax.pipeline.units import make_examples, make_preferences
from ste_jax.records import TrainingExample
from ste_jax.system import shipped
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer
from tests import chats

QUESTION = ({"role": "user", "content": "Which is better?"},)
ANSWER = "The second is right. [[B]]"
ROLE = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
TEMPLATES = {
    **{name: (text, "<|im_end|>") for name, text in chats.TEMPLATES.items()},
    "no_system": (chats.TEMPLATES["no_system"], "<|stop|>"),
    "inst": (chats.TEMPLATES["inst"], "</s>"),
    "ignores_system": (chats.TEMPLATES["ignores_system"], "</s>"),
    "composes": (chats.TEMPLATES["composes"], "</s>"),
    # Qwen 1.5's: the last turn of a finished chat stands open.
    "open": (
        "{% for m in messages %}"
        + ROLE
        + "{% if (loop.last and add_generation_prompt) or not loop.last %}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "always asks": (
        "{% for m in messages %}" + ROLE + "<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    # Nothing ends a turn but the next one's beginning, which ends no answer.
    "no end": ("{% for m in messages %}" + ROLE + "\n{% endfor %}<|im_start|>assistant\n", "</s>"),
    "plain": ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}", "</s>"),
    # A mark that the vocabulary has not is text like any other.
    "other mark": (
        "{% for m in messages %}" + ROLE + "<|im_stop|>\n{% endfor %}<|im_start|>assistant\n",
        "</s>",
    ),
    "marked thoughts": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}",
        "<|im_end|>",
    ),
}


def ended(tokenizer: Tokenizer, ids: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """What a judge learns to say, of an answer from outside and of a pair of such."""
    row = TrainingExample(
        id="x",
        prompt_id="p",
        judgment_id="j",
        label="B",
        messages=QUESTION,
        completion=ANSWER,
        completion_ids=ids,
        forced=False,
        rejected=ANSWER,
        rejected_ids=ids,
        rejected_cut_off=False,
    )
    (pair,) = make_preferences([row], tokenizer)
    return [make_examples([row], tokenizer)[0].completion_ids, pair.chosen_ids, pair.rejected_ids]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_completion_ends_as_the_template_ends_an_answer(name: str, tmp_path: Path) -> None:
    template, end = TEMPLATES[name]
    tokenizer = load_tokenizer(chats.write(chats.byte_level(), tmp_path, template))
    text = tuple(tokenizer.encode(ANSWER, continues=True))
    for ids in ended(tokenizer):
        assert ids[:-1][-len(text) :] == text  # after what closes thoughts, if a prompt opens some
        assert tokenizer.decode(ids[-1:], skip_special=False) == end
    assert tokenizer.end_of_turn_id in tokenizer.eos_ids
    # What was sampled stays, whichever end the model came to; so it does where it is loaded again.
    sampled = (*text, tokenizer.eos_ids[0])
    assert ended(tokenizer, sampled) == [sampled] * 3
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").end_of_turn_id == tokenizer.end_of_turn_id


def test_the_embedded_model_ends_as_it_always_did() -> None:
    tokenizer = load_tokenizer(shipped.model_of("pico") or "")
    assert tokenizer.end_of_turn_id == tokenizer.eos_ids[0]
