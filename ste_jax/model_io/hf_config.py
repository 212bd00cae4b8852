"""What does a Hugging Face `config.json` say of the model, family by family?

Defaults are those of `transformers`, since files leave out what is a default there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ste_jax.errors import RequestError
from ste_jax.model_io.strict_fields import (
    Fields,
    kind_of_rope,
    only_silu,
    positive,
    read_rope,
    read_rope_scaling,
    read_shape,
    rope_to_hf,
)
from ste_jax.models.config import LayerKind, ModelConfig

# ---------------------------------------------------------------------------------------------
# Kinds of layer

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _cycle(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest cycle that gives the kinds of all layers."""
    size = next(
        size
        for size in range(1, len(kinds) + 1)
        if all(kind == kinds[index % size] for index, kind in enumerate(kinds))
    )
    return tuple(kinds[:size])


def _typed_layers(
    fields: Fields, count: int, default: Callable[[int], str], kinds: Mapping[str, LayerKind]
) -> tuple[LayerKind, ...]:
    """The kinds by `layer_types`; where the file has none, by `default(layer)`."""
    types = fields.words("layer_types") or [default(layer) for layer in range(count)]
    unknown = sorted(set(types) - set(kinds))
    if unknown:
        raise fields.refuse("layer_types", f"{unknown[0]} is not known here")
    if len(types) != count:
        raise fields.refuse("layer_types", f"there are {count} layers")
    return _cycle([kinds[each] for each in types])


def _alike(fields: Fields, count: int, kind: LayerKind) -> tuple[LayerKind, ...]:
    """The kind of all layers of a family that has one kind, which `layer_types` is to repeat."""
    name = _GLOBAL if kind.window is None else _LOCAL
    types = fields.words("layer_types")
    if types is not None and (len(types) != count or set(types) != {name}):
        raise fields.refuse("layer_types", f"and all {count} layers are of {name}")
    return (kind,)


def _types_to_hf(config: ModelConfig) -> list[str]:
    kinds = map(config.kind_of, range(config.num_layers))
    return [_GLOBAL if kind.window is None else _LOCAL for kind in kinds]


def _window_of(config: ModelConfig) -> int | None:
    return next((kind.window for kind in config.kinds if kind.window is not None), None)


# ---------------------------------------------------------------------------------------------
# Families: each from a config and to one


def _common_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
    }


def llama_from_hf(fields: Fields) -> ModelConfig:
    """Llama 2, 3, 3.1, 3.2, 3.3, and what has their form (SmolLM2)."""
    only_silu(fields)
    shape = read_shape(fields)
    bias = fields.flag("attention_bias")
    return ModelConfig(
        model_type="llama",
        intermediate_size=fields.size("intermediate_size"),
        kinds=_alike(
            fields, shape["num_layers"], LayerKind(**read_rope(fields, shape["max_position"]))
        ),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
        **shape,
    )


def llama_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    return {
        **_common_to_hf(config, "LlamaForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def mistral_from_hf(fields: Fields) -> ModelConfig:
    """Mistral: a Llama, in some versions with a window in every layer."""
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=8, max_position_embeddings=131072)
    window = fields.window(4096)
    kind = LayerKind(window=window, **read_rope(fields, shape["max_position"]))
    return ModelConfig(
        model_type="mistral",
        intermediate_size=fields.size("intermediate_size"),
        kinds=_alike(fields, shape["num_layers"], kind),
        **shape,
    )


def mistral_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    return {
        **_common_to_hf(config, "MistralForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "sliding_window": config.kinds[0].window,
    }


def _qwen_window(fields: Fields) -> int | None:
    window = fields.window(4096)
    return window if fields.flag("use_sliding_window") else None


def _qwen_kinds(fields: Fields, shape: Mapping[str, Any]) -> tuple[LayerKind, ...]:
    rope = read_rope(fields, shape["max_position"])
    window = _qwen_window(fields)
    first = fields.take("max_window_layers", 28)
    return _typed_layers(
        fields,
        shape["num_layers"],
        lambda layer: _GLOBAL if window is None or layer < first else _LOCAL,
        {_GLOBAL: LayerKind(**rope)}
        | ({} if window is None else {_LOCAL: LayerKind(window=window, **rope)}),
    )


def _qwen_kinds_to_hf(config: ModelConfig) -> dict[str, Any]:
    window = _window_of(config)
    types = _types_to_hf(config)
    whole = [*types, _LOCAL].index(_LOCAL)
    # What older versions of transformers, which do not know layer_types, go by, if it can say it.
    older = {} if _GLOBAL in types[whole:] else {"max_window_layers": whole}
    return {
        **rope_to_hf(config.kinds[0]),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": types,
        **older,
    }


def qwen2_from_hf(fields: Fields) -> ModelConfig:
    """Qwen 2 and 2.5: biases on queries, keys and values."""
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=32, max_position_embeddings=32768)
    return ModelConfig(
        model_type="qwen2",
        intermediate_size=fields.size("intermediate_size"),
        kinds=_qwen_kinds(fields, shape),
        qkv_bias=True,
        **shape,
    )


def qwen2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    return {**_common_to_hf(config, "Qwen2ForCausalLM"), **_qwen_kinds_to_hf(config)}


def qwen3_from_hf(fields: Fields) -> ModelConfig:
    """Qwen 3: norms on queries and keys."""
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768)
    bias = fields.flag("attention_bias")
    return ModelConfig(
        model_type="qwen3",
        intermediate_size=fields.size("intermediate_size"),
        kinds=_qwen_kinds(fields, shape),
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        **shape,
    )


def qwen3_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    return {
        **_common_to_hf(config, "Qwen3ForCausalLM"),
        **_qwen_kinds_to_hf(config),
        "attention_bias": config.qkv_bias,
    }


def mixtral_from_hf(fields: Fields) -> ModelConfig:
    """Mixtral: a Mistral whose MLPs are mixtures of experts."""
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=8, max_position_embeddings=131072)
    rope = read_rope(fields, shape["max_position"], theta=1e6)
    kind = LayerKind(window=fields.window(None), **rope)
    return ModelConfig(
        model_type="mixtral",
        intermediate_size=fields.size("intermediate_size"),
        kinds=_alike(fields, shape["num_layers"], kind),
        experts=fields.size("num_local_experts", 8),
        experts_per_token=fields.size("num_experts_per_tok", 2),
        **shape,
    )


def mixtral_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    return {
        **_common_to_hf(config, "MixtralForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "sliding_window": config.kinds[0].window,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
    }


def qwen3_moe_from_hf(fields: Fields) -> ModelConfig:
    """Qwen 3 with mixtures of experts in all layers."""
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=4, max_position_embeddings=32768)
    fields.only("decoder_sparse_step", 1)
    if fields.take("mlp_only_layers"):
        raise fields.refuse("mlp_only_layers", "and only mixtures in all layers are supported")
    # Of layers without experts, of which there are none.
    fields.take("intermediate_size")
    kind = LayerKind(window=_qwen_window(fields), **read_rope(fields, shape["max_position"]))
    bias = fields.flag("attention_bias")
    experts = "num_experts" if fields.take("num_experts") else "num_local_experts"
    fields.take("num_local_experts")
    return ModelConfig(
        model_type="qwen3_moe",
        intermediate_size=fields.size("moe_intermediate_size", 768),
        kinds=_alike(fields, shape["num_layers"], kind),
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        experts=fields.size(experts, 128),
        experts_per_token=fields.size("num_experts_per_tok", 8),
        normalize_experts=fields.flag("norm_topk_prob"),
        **shape,
    )


def qwen3_moe_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    window = config.kinds[0].window
    return {
        **_common_to_hf(config, "Qwen3MoeForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "attention_bias": config.qkv_bias,
        "moe_intermediate_size": config.intermediate_size,
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.normalize_experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma(fields: Fields) -> dict[str, Any]:
    """What both Gemmas have."""
    # The second name is the one that counts; what the first ones of the first Gemma say does not.
    if fields.take("hidden_activation") is None:
        fields.only("hidden_act", "gelu_pytorch_tanh")
    fields.only("hidden_activation", "gelu_pytorch_tanh")
    fields.take("hidden_act")
    if fields.flag("use_bidirectional_attention"):
        raise fields.refuse("use_bidirectional_attention", "only causal attention is supported")
    bias = fields.flag("attention_bias")
    return {
        "norm_plus_one": True,
        "post_norms": True,
        "scale_embeddings": True,
        "activation": "gelu_tanh",
        "qkv_bias": bias,
        "o_bias": bias,
        "query_scalar": fields.number("query_pre_attn_scalar", 256),
    }


_GEMMA_DEFAULTS = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def _gemma_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    common = _common_to_hf(config, architecture)
    return {
        **common,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": _whole(config.query_scalar),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": _window_of(config) or 4096,
        "layer_types": _types_to_hf(config),
    }


def _whole(value: float | None) -> float | int | None:
    """An integer as one: transformers takes no other form."""
    return int(value) if value is not None and value == int(value) else value


def gemma2_from_hf(fields: Fields) -> ModelConfig:
    """Gemma 2: soft caps; local and global attention in turn."""
    shape = read_shape(fields, vocab_size=256000, max_position_embeddings=8192, **_GEMMA_DEFAULTS)
    rope = read_rope(fields, shape["max_position"])
    window = fields.window(4096, needed=True)
    # Its other name, as the published files have it beside the first.
    fields.only("sliding_window_size", window)
    kinds = _typed_layers(
        fields,
        shape["num_layers"],
        lambda layer: _GLOBAL if layer % 2 else _LOCAL,
        {_LOCAL: LayerKind(window=window, **rope), _GLOBAL: LayerKind(**rope)},
    )
    return ModelConfig(
        model_type="gemma2",
        intermediate_size=fields.size("intermediate_size", 9216),
        kinds=kinds,
        attention_softcap=fields.capped("attn_logit_softcapping", 50.0),
        final_softcap=fields.capped("final_logit_softcapping", 30.0),
        **_gemma(fields),
        **shape,
    )


def gemma2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    return {**_gemma_to_hf(config, "Gemma2ForCausalLM"), **rope_to_hf(config.kinds[0])}


def gemma3_from_hf(fields: Fields) -> ModelConfig:
    """Gemma 3, the text model: norms on queries and keys; mostly local attention, with rotary
    embedding of its own."""
    shape = read_shape(fields, vocab_size=262208, max_position_embeddings=131072, **_GEMMA_DEFAULTS)
    local, whole = _gemma3_ropes(fields, shape["max_position"])
    pattern = fields.size("sliding_window_pattern", 6)
    kinds = _typed_layers(
        fields,
        shape["num_layers"],
        lambda layer: _LOCAL if (layer + 1) % pattern else _GLOBAL,
        {
            _LOCAL: LayerKind(window=fields.window(4096, needed=True), **local),
            _GLOBAL: LayerKind(**whole),
        },
    )
    return ModelConfig(
        model_type="gemma3_text",
        intermediate_size=fields.size("intermediate_size", 9216),
        kinds=kinds,
        qk_norm=True,
        attention_softcap=fields.capped("attn_logit_softcapping", None),
        final_softcap=fields.capped("final_logit_softcapping", None),
        **_gemma(fields),
        **shape,
    )


def _gemma3_ropes(fields: Fields, max_position: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary embedding of local layers and of global ones."""
    told, scaling = fields.group("rope_parameters"), fields.group("rope_scaling")
    thetas = {
        _LOCAL: fields.number("rope_local_base_freq", 1e4),
        _GLOBAL: fields.number("rope_theta", 1e6),
    }
    found = []
    if told and not set(told) <= set(thetas):
        raise fields.refuse("rope_parameters", f"{_LOCAL} and {_GLOBAL} are expected in it")
    for kind, theta in thetas.items():
        rope = dict(told.get(kind) or {}) | (scaling if kind == _GLOBAL else {})
        if kind_of_rope(rope) != "llama3":
            fields.take("original_max_position_embeddings")  # without effect
        told_theta = rope.pop("rope_theta", None)
        theta = theta if told_theta is None else told_theta
        found.append(
            {
                "rope_theta": positive(theta, "rope_theta", f"{fields.where}:"),
                "rope_scaling": read_rope_scaling(rope, max_position, fields.where),
            }
        )
    return found[0], found[1]


def gemma3_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse."""
    local = next((kind for kind in config.kinds if kind.window is not None), None)
    whole = next((kind for kind in config.kinds if kind.window is None), None)
    if local is not None and local.rope_scaling is not None:
        raise RequestError(
            "rope scaling in layers with a window has no form that all versions of transformers "
            "read, so this model cannot be written as a Hugging Face one"
        )
    values = {
        **_gemma_to_hf(config, "Gemma3ForCausalLM"),
        **rope_to_hf(whole or LayerKind(rope_theta=1e6)),
        "rope_local_base_freq": local.rope_theta if local else 1e4,
    }
    if [kind.window is None for kind in config.kinds] == [*[False] * (len(config.kinds) - 1), True]:
        # What older versions of transformers, which do not know layer_types, go by.
        values["sliding_window_pattern"] = len(config.kinds)
    return values


def text_of_gemma3_from_hf(fields: Fields) -> ModelConfig:
    """Gemma 3 with its eyes: the text model of it."""
    fields.need("text_config")
    text = Fields(fields.group("text_config"), f"{fields.where}: text_config")
    for key in (
        "boi_token_id",
        "boi_token_index",
        "eoi_token_id",
        "eoi_token_index",
        "image_token_id",
        "image_token_index",
        "mm_tokens_per_image",
        "vision_config",
    ):
        fields.take(key)  # of images, which are not read here
        text.take(key)
    config = gemma3_from_hf(text)
    text.finish()
    if fields.flag("tie_word_embeddings", config.tie_embeddings) != config.tie_embeddings:
        raise fields.refuse("tie_word_embeddings", "and text_config says otherwise")
    return config
