"""How does a benchmark print its claims, and whether they hold?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def claim_line(claim: str, holds: bool) -> str:
    """A line that says whether a claim holds, and then the claim."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}"


def report(found: Any, holds: bool, file: Path | None) -> int:
    """Print what was found, and keep it in a file if one is named; returns the exit status."""
    text = json.dumps(found, indent=2)
    print(text)
    if file:
        file.write_text(f"{text}\n")
    return 0 if holds else 1
