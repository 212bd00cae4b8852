"""Which arguments may a chat template be given beside the messages?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ste_jax.system.errors import RequestError

_TAKEN = frozenset(
    ("messages", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt")
    + ("conversation", "continue_final_message", "padding", "truncation", "max_length")
    + ("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs")
    + ("self", "prompt", "turns")
)
"""Names that a chat template is given already, or that would be taken for something else."""


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Check the arguments at the place `where` of a config or a card.

    Raises:
      RequestError: a template cannot be given one of them, or JSON cannot hold its value.
    """
    for key, value in arguments.items():
        if key in _TAKEN or not key.isidentifier():
            raise RequestError(
                f"{where}.{key}: the chat template cannot be given that; leave it out"
            )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"{where}.{key} is {value!r}, which JSON cannot hold; quote it"
            ) from error
