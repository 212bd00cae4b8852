"""How does the package say that something went wrong?

The kinds of failure differ in who can mend them. Each carries one sentence that
names what failed, where, and what to do about it; the command line prints the sentence and exits
with the status of its kind (0: done; 1: the work failed; 2: the request was wrong; 3: a judge gave
no verdict; 75: stopped in good order, to be run again).
"""

from __future__ import annotations


class SteError(Exception):
    """A failure that is shown to the user as one sentence."""

    exit_status = 1


class RequestError(SteError):
    """The request was wrong: an unknown key, a missing file, a malformed input. Exit status 2."""

    exit_status = 2


class WorkError(SteError):
    """The request was fine and the work failed: a full disk, an empty selection. Exit status 1."""


class NoVerdict(SteError):
    """A judge was asked and gave no verdict. Exit status 3."""

    exit_status = 3


class Preempted(SteError):
    """The process was asked to stop, and its work is saved. Run the same command again. Exit status
    75."""

    exit_status = 75


def unexpected(error: Exception) -> str:
    """One sentence for the user about an error that the package did not foresee."""
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if "RESOURCE_EXHAUSTED" in message or isinstance(error, MemoryError):
        return (
            f"out of memory ({message}); lower decoding.groups, decoding.group_size or the "
            "buckets, or in fine-tuning finetune.sequence_length, or raise finetune.accumulate"
        )
    if isinstance(error, ImportError) and "gcsfs" in message:
        return "paths that begin with gs:// need gcsfs: pip install gcsfs"
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return f"the system refused:{where} {error.strerror or message}"
    return f"{type(error).__name__}: {message} (not foreseen; --debug shows where)"
