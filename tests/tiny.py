"""A model of a few thousand random weights whose words fill every stage.

Its vocabulary holds the verdicts, the category names and the section marks as single tokens, and a
constant in its residual stream makes chosen tokens likelier, so that what it says parses often,
fails often, and fails in every way there is. It comes as a Hugging Face directory and enters like
any other model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

WORDS = " ".join(
    (
        "apple bread chair dance early flute green house igloo joker kites lemon mango night",
        "ocean piano queen river stone tulip uncle viola water xenon young zebra amber birch",
        "cedar delta",
    )
).split(" ")
CATEGORIES = ("coding", "writing", "reasoning", "advice", "other")

_SPECIAL = ("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
_BIAS = {
    "<|im_end|>": 3.4,
    **{f"▁{name}": 2.2 for name in CATEGORIES},
    "▁[[A]]": 2.0,
    "▁[[B]]": 2.2,
    "A]]": 2.6,
    "B]]": 2.2,
    "\n[Response]\n": 2.6,
    "\n": 1.0,
    "<unk>": -30.0,
    "<|endoftext|>": -30.0,
    "<|im_start|>": -30.0,
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary(words: Iterable[str] = ()) -> list[str]:
    """All tokens, in the order of their ids; `words` are more of them."""
    names = [*_SPECIAL, "\n", "system", "user", "assistant"]
    names += [f"▁{word}" for word in WORDS] + [f"▁{name}" for name in CATEGORIES]
    names += ["▁[[A]]", "▁[[B]]", "▁[[", "A]]", "B]]", "▁Category:", "▁Difficulty:", "▁verdict:"]
    names += ["\n[Modified Instruction]\n", "\n[Response]\n"] + [f"▁{n}" for n in range(1, 6)]
    return [*names, *words]


_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INNER = 24, 4, 2, 8, 40


def write_model(
    directory: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    words: Mapping[str, float] | None = None,
    verdicts: str = "[AB]",
    **bias: float,
) -> Path:
    """Write the model as a Hugging Face directory; returns it.

    Args:
      directory: where.
      seed: of the weights.
      layers: how many.
      words: more tokens (`▁` is a space before one), each with its bias: a task's verdicts.
      verdicts: a pattern of the verdicts that are read as one token with the `]]` behind them,
        where a forced text ends in `[[`; such tokens (`A]]`) are among `words`.
      bias: the biases of tokens that the model has anyhow.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names, bias = vocabulary(words or ()), {**(words or {}), **bias}
    hidden, heads, kv_heads, head_dim, inner = _HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INNER
    (directory / "config.json").write_text(json.dumps(_config(len(names), layers)))
    draw = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> Any:
        return draw.normal(0, scale, shape).astype(np.float32)

    embed = normal(len(names), hidden, scale=0.6)
    embed[:, 0] = 2.0  # the constant: nothing below writes to this place
    head = normal(len(names), hidden, scale=0.15)
    # the rest of the stream has about twice that size, and the final norm leaves about 1 of it
    head[:, 0] = [{**_BIAS, **bias}.get(name, 0.0) for name in names]
    tensors = {
        "model.embed_tokens.weight": embed,
        "model.norm.weight": np.ones(hidden, np.float32),
        "lm_head.weight": head,
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        down, out = normal(hidden, inner, scale=0.1), normal(hidden, heads * head_dim, scale=0.08)
        down[0] = out[0] = 0
        tensors |= {
            at + "self_attn.q_proj.weight": normal(heads * head_dim, hidden, scale=0.4),
            at + "self_attn.k_proj.weight": normal(kv_heads * head_dim, hidden, scale=0.4),
            at + "self_attn.v_proj.weight": normal(kv_heads * head_dim, hidden, scale=0.4),
            at + "self_attn.o_proj.weight": out,
            at + "mlp.gate_proj.weight": normal(inner, hidden, scale=0.3),
            at + "mlp.up_proj.weight": normal(inner, hidden, scale=0.3),
            at + "mlp.down_proj.weight": down,
            at + "input_layernorm.weight": np.ones(hidden, np.float32),
            at + "post_attention_layernorm.weight": np.ones(hidden, np.float32),
        }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(directory, names, verdicts)
    return directory


def _config(vocabulary: int, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "intermediate_size": _INNER,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "torch_dtype": "float32",
    }


def _write_tokenizer(directory: Path, names: list[str], verdicts: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # What the model prints is read again as the tokens that it printed.
            pre_tokenizers.Split(
                Regex(rf"\n\[(Modified Instruction|Response)\]\n|\n|(?<!\[)(?:{verdicts})\]\]"),
                "isolated",
            ),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pool(path: Path, rows: int = 1400, seed: int = 0) -> Path:
    """Instructions of random words, some twice, some nearly alike, some rows that are none."""
    draw = random.Random(seed)
    lines = []
    while len(lines) < rows:
        words = draw.sample(WORDS, draw.randint(5, 9))
        lines.append(json.dumps({"instruction": " " + " ".join(words), "kind": "random"}))
        if draw.random() < 0.06:
            lines.append(lines[-1])
        if draw.random() < 0.08:
            lines.append(json.dumps({"instruction": " " + " ".join([*words, draw.choice(WORDS)])}))
        if draw.random() < 0.03:
            lines.append(draw.choice(["{broken", '{"instruction": ""}', '{"other": 1}', "[1]"]))
    path.write_text("\n".join(lines[:rows]) + "\n")
    return path


def write_templates(directory: Path) -> None:
    """Short templates, so that prompts stay in the smallest bucket."""
    directory.mkdir(parents=True, exist_ok=True)
    example = {"instruction": " apple bread chair", "reply": " young zebra amber birch"}
    texts: dict[str, dict[str, Any]] = {
        "classify": {"user": " {instruction} {categories}", "start": " Category:"},
        "respond": {"user": "{instruction}"},
        "modify": {
            "user": " {instruction}",
            "start": "\n[Modified Instruction]\n",
            "examples": [{**example, "reply": " writing\n[Response]\n amber birch"}],
        },
        "judge": {"user": " {instruction}\n {answer_a}\n {answer_b}"},
    }
    for name, text in texts.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(text, allow_unicode=True))


def config(root: Path, **changes: Any) -> dict[str, Any]:
    """A run's config on this model, as a plain dict; writes model, pool and templates to `root`."""
    write_model(root / "model")
    write_pool(root / "pool.jsonl")
    write_templates(root / "templates")

    def role(name: str, tokens: int, temperature: float = 1.0) -> dict[str, Any]:
        sampling = {"max_new_tokens": tokens, "temperature": temperature, "top_p": 1.0}
        return {"template": str(root / "templates" / f"{name}.yaml"), "sampling": sampling}

    values: dict[str, Any] = {
        "name": "tiny",
        "model": str(root / "model"),
        "iterations": 2,
        "pool": {"path": [str(root / "pool.jsonl")], "shards": 3},
        "roles": {
            "classify": role("classify", 6),
            "respond": role("respond", 14),
            "modify": role("modify", 20),
            "judge": role("judge", 16),
        },
        "judge": {"force_verdict": True, "force_text": "\n verdict: [["},
        "select": {
            "categories": list(CATEGORIES),
            "train": 270,
            "heldout": 190,
            "validation_fraction": 0.1,
            "max_category_share": 0.3,
        },
        "pair": {"min_answer_chars": 4},
        "annotate": {"samples": 4, "waves": [2, 2]},
        "finetune": {
            "epochs": 2.0,
            "sequence_length": 128,
            "batch_rows": 8,
            "learning_rate": 5e-3,
            "dtype": "float32",
            "validate_every": 4,
            "save_every": 2,
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
        },
        "evaluate": {"votes": 3, "bootstrap": 200},
        "decoding": {
            "prompt_buckets": [64],
            "new_buckets": [4, 24],
            "groups": 8,
            "group_size": 2,
            "prefill_chunk": 16,
            "steps_per_round": 4,
            "dtype": "float32",
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return values


def config_of_small_models(root: Path) -> dict[str, Any]:
    """The other way through the stages, as small models need it: labels by calibrated score, the
    modified instruction asked for alone and without a forced start, every sample drawn; and some
    instructions that only the classifier has room for."""
    values = config(
        root,
        name="tiny-small",
        select__labels="score",
        select__train=290,
        select__heldout=70,
        select__max_category_share=1.0,
        roles__respond__sampling__max_new_tokens=24,
        pair__min_answer_chars=1,
        pair__rejected_from="respond",
        pair__max_similarity=0.08,
        annotate__policy="all",
        curate__min_agreement=0.25,
        judge__force_verdict=False,
        finetune__start_from="previous",
    )
    write_model(root / "model", **{"\n[Modified Instruction]\n": 2.0})
    write_pool(root / "pool.jsonl", rows=520)
    draw = random.Random(1)
    with (root / "pool.jsonl").open("a") as pool:
        for _ in range(30):
            text = " ".join(draw.choices(WORDS, k=38))
            pool.write(json.dumps({"instruction": f" {text}"}) + "\n")
    templates = {
        "respond": {"system": " ".join(WORDS[:18]), "user": "{instruction}"},
        "modify": {
            "system": " ".join(WORDS[:20]),
            "user": " {instruction}",
            "examples": [
                {"instruction": " apple bread", "reply": "\n[Modified Instruction]\n amber birch"}
            ],
        },
    }
    for name, text in templates.items():
        (root / "templates" / f"{name}.yaml").write_text(yaml.safe_dump(text, allow_unicode=True))
    return values
