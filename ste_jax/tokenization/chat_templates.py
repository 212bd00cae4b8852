"""How does a chat become a prompt's text, by a template that comes with a model?

It is rendered as `transformers` renders it (the same environment: blocks trimmed, `tojson`,
`raise_exception`, `strftime_now`, `{% generation %}`), except that every rendering ends: its work
is counted, loop by loop and character by character, and a template that exceeds a budget is
refused. Templates come from strangers; one that nests loops, or doubles a text forty times, would
otherwise hold a run for ever or fill the memory. Counting, unlike a clock, decides alike on every
machine.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_BUDGET = 100_000_000
"""What one rendering may spend: 1 for a character that is read or made, `_ITEM` for an item of a
list, `_STEP` for a turn of a loop or a call. A chat of a million characters costs some millions."""
_ITEM, _STEP = 16, 500
_INTEGER_BITS = 4096
_NOW = datetime.datetime(2024, 7, 26)
"""The date that templates are given: with today's, a run would depend on when it is resumed."""

_UNBOUND_METHODS = {"center", "expandtabs", "ljust", "rjust", "to_bytes", "zfill"}
_UNBOUND_FILTERS = {"batch", "center", "filesizeformat", "pprint", "random", "slice", "urlize"}
_UNBOUND_FILTERS |= {"wordwrap", "xmlattr"}
"""Filters that templates may not use: their output is as large as a number says, or random. No
published template uses them."""
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)|\{[^}]*:[^}]*(\d{4}|\{)")
"""Matches a format that asks for a width of thousands, or takes a width from its arguments."""


class ChatTemplate:
    """A compiled template. Raises `jinja2.TemplateError` for a text that is not a template."""

    def __init__(self, text: str) -> None:
        self._environment = _Environment()
        self._template = self._environment.from_string(text)

    def render(self, messages: Sequence[Mapping[str, Any]], prompt: bool, **arguments: Any) -> str:
        """The text of a chat; with `prompt` up to where the assistant begins.

        Errors in a template are raised as they are; a template that would take too long, or would
        never end, raises `jinja2.TemplateError`.
        """
        with self._environment.budget:
            return self._template.render(
                messages=[dict(each) for each in messages],
                add_generation_prompt=prompt,
                tools=None,
                documents=None,
                **arguments,
            )


USER, ASSISTANT = "user", "assistant"
Written = Callable[[Sequence[str], bool], list[list[str]]]
"""A function of a chat's roles, and of whether it stops where the assistant begins. It gives the
control tokens that a template writes before, between and after the contents of such a chat."""


def end_of_turn(written: Written, known: Collection[str]) -> str | None:
    """The control token with which a template ends an answer; None if there is none. `known` are
    tokens that end a text in any case."""
    *_, asked = written([USER], True)
    *_, answered = written([USER, ASSISTANT], False)
    # A token that follows questions and answers alike may be the beginning of the next turn.
    if answered and (answered[0] in known or answered != asked):
        return answered[0]
    # Some templates let the last turn of a chat stand open.
    before, first, second, _ = written([USER, ASSISTANT, USER], False)
    if first[:1] == second[:1] != [] and (first[0] in known or first[0] not in before):
        return first[0]
    return None


class _Budget(threading.local):
    """What the rendering in this thread may still spend."""

    left = _BUDGET

    def __enter__(self) -> None:
        self.left = _BUDGET

    def __exit__(self, *_: object) -> None:
        self.left = _BUDGET

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise jinja2.TemplateError("it does not come to an end, or makes far too long a text")


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant wrote, and here does nothing."""

    tags = {"generation"}  # noqa: RUF012 (as the class above has it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace has no {name!r} to set")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    """An environment whose templates spend a budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.budget = _Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,  # nothing is computed before there is a budget
            finalize=self._printed,
        )
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _NOW.strftime,
            "dict": lambda *args, **named: dict(*args, **named),
            "namespace": lambda *args, **named: _Namespace(*args, **named),
        }
        del self.globals["lipsum"]
        self.filters["tojson"] = _to_json
        for name in _UNBOUND_FILTERS:
            del self.filters[name]
        self.filters = {name: self._counted(name, each) for name, each in self.filters.items()}
        self.filters |= {"counted turns": self._turns, "counted text": self._text}

    # Counting what a template does --------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = self._through("counted turns", loop.iter)
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [self._through("counted text", each) for each in joined.nodes]
        for compared in tree.find_all(nodes.Operand):
            compared.expr = self._through("counted text", compared.expr)
        for part in tree.find_all(nodes.Getitem):
            if isinstance(part.arg, nodes.Slice):
                part.node = self._through("counted text", part.node)
        return tree

    def _through(self, name: str, value: Any) -> nodes.Expr:
        node = nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)
        node.set_environment(self)
        return node

    def _turns(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.spend(_STEP)
            yield value

    def _text(self, value: Any) -> Any:
        self.budget.spend(_cost(value))
        return value

    # With the context asked for, `jinja2` computes no constant while it compiles.
    @staticmethod
    @jinja2.pass_context
    def _printed(context: Any, value: Any) -> Any:
        context.environment.budget.spend(_cost(value))
        return value

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            *before, value = args[: passed + 1]
            rest = args[passed + 1 :]
            if name == "join":
                value = list(value)
            self._spend_on(name, value, [*rest, *named.values()])
            return self._text(function(*before, value, *rest, **named))

        return counted

    def call(self, context: Any, obj: Any, /, *args: Any, **named: Any) -> Any:
        """A function, a method, or a macro of the template."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str | bytes) and name == "join" and args:
            args = (list(args[0]),)
            self._spend_on(name, args[0], [owner])
        else:
            self._spend_on(name, owner, [*args, *named.values()])
        return self._text(super().call(context, obj, *args, **named))

    def _spend_on(self, name: str, value: Any, args: Sequence[Any]) -> None:
        """Spends the cost of a call: of what it reads, or of what it makes where that is more."""
        self.budget.spend(_STEP + _cost(value) + sum(map(_cost, args)))
        if name == "replace" and len(args) >= 2:
            old, new = args[:2]
            self.budget.spend(str(value).count(str(old)) * _cost(new))
        elif name == "join" and args:
            self.budget.spend(sum(map(_cost, value)) + len(value) * _cost(args[0]))
        elif name == "indent" and args:
            width = args[0] if isinstance(args[0], int) else _cost(args[0])
            self.budget.spend((str(value).count("\n") + 1) * width)
        elif name == "format":
            _refuse_wide(value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """What `left operator right` gives."""
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers and left.bit_length() * abs(right) > _INTEGER_BITS:
            raise jinja2.TemplateError("it computes with a number of thousands of digits")
        if operator == "*" and numbers and left.bit_length() + right.bit_length() > _INTEGER_BITS:
            raise jinja2.TemplateError("it computes with a number of thousands of digits")
        if operator == "*" and not numbers:
            times = next((each for each in (left, right) if isinstance(each, int)), 1)
            self.budget.spend(max(_cost(left), _cost(right)) * max(times, 0))
        if operator == "%":
            _refuse_wide(left)
        return self._text(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute."""
        return attr not in _UNBOUND_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        """`text.format` as the sandbox wraps it; it refuses large widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_wide(value.__self__)
        return wrapped


def _cost(value: Any) -> int:
    """What a value costs to read."""
    if isinstance(value, list | tuple | dict):
        return _ITEM * len(value)
    return len(value) if isinstance(value, str | bytes) else 0


def _refuse_wide(text: Any) -> None:
    if isinstance(text, str) and _WIDE.search(text):
        raise jinja2.TemplateError("it formats to a width of thousands")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja2's own filter would escape characters that are special in HTML."""
    if (indent if isinstance(indent, int) else _cost(indent)) > 16:
        raise jinja2.TemplateError("it indents JSON by more than 16 spaces")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
