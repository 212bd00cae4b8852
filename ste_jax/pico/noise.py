"""Which instructions are in the pool so that select has something to drop?"""

from __future__ import annotations

from random import Random

from ste_jax.pico.kinds import NAMES, THINGS

_WORDS = (
    *("apple", "chair", "dog", "house", "river", "lamp", "bread", "cloud", "horse", "piano"),
    *("tiger", "bottle", "garden", "window", "mirror", "spoon", "candle", "forest", "bridge"),
)
_LETTERS = "abcdefghijklmnoprstuw"
_OFF_TOPIC = (
    "Write a poem about a {word}.",
    "Tell me a story about {name} and a {word}.",
    "What do you think of {thing}?",
    "Who made the first {word}?",
    "Give me some advice about my {word}.",
    "Do you like {name}?",
    "Draw a {word} for {name}.",
    "Where can I buy {thing}?",
)


def draw_noise(draw: Random) -> str:
    """An instruction that is no task of this world: random keys, or another subject."""
    if draw.random() < 0.3:
        return " ".join(
            "".join(draw.choice(_LETTERS) for _ in range(draw.randint(1, 4)))
            for _ in range(draw.randint(2, 5))
        )
    places = {"word": draw.choice(_WORDS), "name": draw.choice(NAMES), "thing": draw.choice(THINGS)}
    return draw.choice(_OFF_TOPIC).format(**places)
