"""How is a claim told that was held against a measurement?"""

from __future__ import annotations


def claim_told(claim: str, holds: bool) -> str:
    """The claim, after whether it holds."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}"
