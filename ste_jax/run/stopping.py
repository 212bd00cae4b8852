"""What does a stop lose?

Rows that have finished are kept (`run.journal`). Those in hand, of which tokens were drawn and that
have not finished, are drawn again, and that is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ste_jax.run.changes import counted
from ste_jax.system import preemption, progress
from ste_jax.system.errors import Preempted

In = TypeVar("In")


@dataclass
class InHand:
    """Rows that are worked on."""

    title: str
    """What messages call the work."""
    rows: str
    """What they call its rows, as `pairs`."""
    tokens: Callable[[], int]
    """How many tokens were drawn of rows that have not finished."""
    given: int = 0
    finished: int = 0

    def giving(self, rows: Iterable[In]) -> Iterator[In]:
        """The rows, of which each counts as given."""
        for row in rows:
            self.given += 1
            yield row

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """The body does the work, and polls whether it is to stop. If it is, a line says what is
        lost.

        Raises:
          Preempted: asked to stop.
        """
        try:
            with preemption.in_hand(lambda: self.finished > 0 or self.tokens() > 0):
                yield
        except Preempted:
            rows, tokens = self.given - self.finished, self.tokens()
            if rows and tokens:
                were, their = ("was", "its") if rows == 1 else ("were", "their")
                progress.warn(
                    f"stopped: {self.title}: {counted(rows, self.rows)} in hand {were} not "
                    f"finished; {their} {counted(tokens, 'tokens')} are drawn again"
                )
            raise
