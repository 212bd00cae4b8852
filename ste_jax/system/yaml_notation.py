"""How is a user's YAML read, so that no value silently becomes another?

A key that is there twice is refused. Keys are texts, and what YAML 1.1 takes for an octal number
(010), a sexagesimal number (1:30) or a date stays the text that was written; where a number is
needed, that text is then refused."""

from __future__ import annotations

import re
from typing import Any

import yaml


def from_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
      ValueError: not YAML, a key stands twice, or nested too deep; says which, and where.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("lists and groups are nested too deep") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, except that keys are checked and odd numbers and dates stay texts."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return node


_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's rules for plain scalars, without octals, sexagesimals and dates."""
    narrowed = {"tag:yaml.org,2002:int": _INT, "tag:yaml.org,2002:float": _FLOAT}
    return {
        first: [
            (tag, re.compile(rf"(?:{narrowed[tag].pattern})\Z") if tag in narrowed else pattern)
            for tag, pattern in rules
            if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.yaml_implicit_resolvers = _resolvers()
