"""What can a user do whose judge ends without a verdict?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.prompts.render import TEMPLATES
from ste_jax.tasks import Task


def for_no_verdict(task: Task, asked: Mapping[str, Any], failures: Mapping[str, int]) -> str:
    """The options to try, as words that follow `try`; empty where there are none.

    Args:
      asked: how the judge was asked, as `judge_options.named_options` gives it.
      failures: why there was no verdict: kind -> how often.
    """
    small = f"small-{task.template}"
    options = []
    if asked.get("usual prompt") and (TEMPLATES / f"{small}.yaml").exists():
        options.append(f"--template {small}")
    if not asked.get("--force-verdict"):
        options.append("--force-verdict")
    ways = [f"`{' '.join(options)}`"] if options else []
    if failures and max(failures, key=lambda kind: failures[kind]) == "cut_off":
        tokens = asked.get("--max-new-tokens")
        ways.append("a larger `--max-new-tokens`" + (f" than {tokens}" if tokens else ""))
    return " or ".join(ways)
