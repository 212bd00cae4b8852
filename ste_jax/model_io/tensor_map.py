"""In which tensors of a file is each of our parameters?

One of ours may be many of theirs: a stacked parameter is a tensor per layer, and where the file has
every expert apart, per layer and expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ste_jax.model_io import tensor_layout
from ste_jax.model_io.families.weights import Weight
from ste_jax.models.config import ModelConfig, Parameter

Place = tuple[int, ...]
"""Indices along the first axes of a parameter."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a file keeps one of our parameters."""

    path: str
    parameter: Parameter
    template: str
    """The tensors' names, with `{layer}` and `{expert}` in them."""
    layers: range
    """The layers of the parameter's group; empty for a parameter outside the layers."""
    numbered: int
    """How many of the parameter's first axes are numbers in the names."""
    layout: str
    """The layout of one tensor, in the axes that the names do not number."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The logical axes of one tensor, in our order."""
        return self.parameter.axes[self.numbered :]

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each of the `axes`."""
        return dict(zip(self.axes, self.parameter.shape[self.numbered :], strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one tensor, as the file has it."""
        return tensor_layout.file_shape(self.layout, self.sizes)

    def places(self) -> Iterator[Place]:
        """The place of each tensor in the parameter; the layer changes slowest."""
        yield from _places(self.parameter.shape[: self.numbered])

    def name(self, place: Place) -> str:
        """The tensor's name."""
        numbers = dict(zip(("layer", "expert"), place, strict=False))
        if "layer" in numbers:
            numbers["layer"] = self.layers[numbers["layer"]]
        return self.template.format(**numbers)


def _places(sizes: tuple[int, ...]) -> Iterator[Place]:
    """All places, as `itertools.product` gives them; that one would list every size first."""
    if not sizes:
        yield ()
        return
    for first in range(sizes[0]):
        for rest in _places(sizes[1:]):
            yield (first, *rest)


def stored(
    config: ModelConfig, weights: Sequence[Weight], name_of: Callable[[Weight], str]
) -> dict[str, Stored]:
    """How a kind of file keeps the parameters of a model, by path; `name_of` says which of a
    weight's names are that kind's."""
    by_name = {weight.name: weight for weight in weights}
    found = {}
    for path, parameter in config.parameters().items():
        _, group, name = path.split(".") if "." in path else ("", "", path)
        weight = by_name[name]
        template = name_of(weight)
        of_all = "experts" in parameter.axes and "{expert}" not in template
        whole = "experts " if of_all and "experts" not in weight.layout else ""
        found[path] = Stored(
            path=path,
            parameter=parameter,
            template=template,
            layers=config.groups[int(group)] if group else range(0),
            numbered=("{layer}" in template) + ("{expert}" in template),
            layout=whole + weight.layout,
        )
    return found
