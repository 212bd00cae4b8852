"""Gemma 3, the text model: norms on queries and keys; mostly local attention, with rotary embedding
of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.model_io.families.family import Family, GGUFForm
from ste_jax.model_io.families.gemma import DEFAULTS, WEIGHTS, gemma_to_hf, read_gemma
from ste_jax.model_io.families.hf_fields import read_shape
from ste_jax.model_io.families.layer_kinds import GLOBAL, LOCAL, typed_layers
from ste_jax.model_io.families.rope import kind_of_rope, read_rope_scaling, rope_to_hf
from ste_jax.model_io.strict_fields import Fields, positive
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling
from ste_jax.system.errors import RequestError


def _from_hf(fields: Fields) -> ModelConfig:
    shape = read_shape(fields, vocab_size=262208, max_position_embeddings=131072, **DEFAULTS)
    local, whole = _ropes(fields, shape["max_position"])
    pattern = fields.size("sliding_window_pattern", 6)
    kinds = typed_layers(
        fields,
        shape["num_layers"],
        lambda layer: LOCAL if (layer + 1) % pattern else GLOBAL,
        {
            LOCAL: LayerKind(window=fields.window(4096, needed=True), **local),
            GLOBAL: LayerKind(**whole),
        },
    )
    return ModelConfig(
        model_type="gemma3_text",
        intermediate_size=fields.size("intermediate_size", 9216),
        kinds=kinds,
        qk_norm=True,
        attention_softcap=fields.optional("attn_logit_softcapping", None),
        final_softcap=fields.optional("final_logit_softcapping", None),
        **read_gemma(fields),
        **shape,
    )


def _ropes(fields: Fields, max_position: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary embedding of local layers and of global ones."""
    groups, scaling = fields.group("rope_parameters"), fields.group("rope_scaling")
    thetas = {
        LOCAL: fields.number("rope_local_base_freq", 1e4),
        GLOBAL: fields.number("rope_theta", 1e6),
    }
    found = []
    if groups and not set(groups) <= set(thetas):
        raise fields.refuse("rope_parameters", f"{LOCAL} and {GLOBAL} are expected in it")
    for kind, theta in thetas.items():
        rope = dict(groups.get(kind) or {}) | (scaling if kind == GLOBAL else {})
        if kind_of_rope(rope) != "llama3":
            fields.take("original_max_position_embeddings")  # without effect
        own_theta = rope.pop("rope_theta", None)
        theta = theta if own_theta is None else own_theta
        found.append(
            {
                "rope_theta": positive(theta, f"{fields.where}: rope_theta"),
                "rope_scaling": read_rope_scaling(rope, max_position, fields.where),
            }
        )
    return found[0], found[1]


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    local = next((kind for kind in config.kinds if kind.window is not None), None)
    whole = next((kind for kind in config.kinds if kind.window is None), None)
    if local is not None and local.rope_scaling is not None:
        raise RequestError(
            "rope scaling in layers with a window has no form that all versions of transformers "
            "read, so this model cannot be written as a Hugging Face one"
        )
    values = {
        **gemma_to_hf(config, "Gemma3ForCausalLM"),
        **rope_to_hf(whole or LayerKind(rope_theta=1e6)),
        "rope_local_base_freq": local.rope_theta if local else 1e4,
    }
    if [kind.window is None for kind in config.kinds] == [*[False] * (len(config.kinds) - 1), True]:
        # What older versions of transformers, which do not know layer_types, go by.
        values["sliding_window_pattern"] = len(config.kinds)
    return values


def _from_gguf(
    metadata: Fields, sizes: Mapping[str, Any], scaling: RopeScaling | None
) -> dict[str, Any]:
    # What the format leaves out is written into llama.cpp: every sixth layer is global, local ones
    # turn by a base of 10,000, and in the model of 62 layers the scores are scaled otherwise.
    scalar = sizes["head_dim"]
    if sizes["num_layers"] == 62:
        scalar = sizes["hidden_size"] // sizes["num_heads"]
    local = LayerKind(
        window=metadata.size("attention.sliding_window"),
        rope_theta=metadata.number("rope.freq_base_swa", 10000.0),
    )
    theta = metadata.number("rope.freq_base", 1000000.0)
    everywhere = LayerKind(rope_theta=theta, rope_scaling=scaling)
    return {
        "kinds": (*[local] * 5, everywhere),
        "norm_plus_one": True,
        "post_norms": True,
        "qk_norm": True,
        "scale_embeddings": True,
        "activation": "gelu_tanh",
        "query_scalar": float(scalar),
        "final_softcap": metadata.optional("final_logit_softcapping"),
    }


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=WEIGHTS,
    gguf=GGUFForm(architecture="gemma3", particular=_from_gguf),
)
