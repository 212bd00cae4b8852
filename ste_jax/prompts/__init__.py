"""What a role is asked, and how its words are read."""

from ste_jax.prompts.parse import parse_verdict

__all__ = ["parse_verdict"]
