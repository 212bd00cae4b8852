"""Where does the last full sentence of a cut-off text end?"""

from __future__ import annotations

import re

_END = re.compile(r"""[.!?…。！？]["'”’)\]*_`]*(?=\s|$)|\n""")


def last_full_sentence(text: str) -> int:
    """The length of `text` up to the end of its last sentence or line; 0 if there is none.

    A list number ("2.") at the start of a line ends no sentence.
    """
    end = 0
    for match in _END.finditer(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if match[0] == "\n" or not line.strip().isdigit():
            end = match.end() if match[0] != "\n" else match.start()
    return end
