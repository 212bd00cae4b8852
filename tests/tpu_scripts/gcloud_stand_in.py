"""A `gcloud` that records how it is called, and plays the slice's workers if told where they live.

Every call's words go as one JSON line into $RECORD. With $WORKERS (a folder with a home for each
worker), `scp` copies into the homes and `ssh --command` runs there in bash, as on real workers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    with open(os.environ["RECORD"], "a", encoding="utf-8") as record:
        record.write(json.dumps(words) + "\n")
    if "WORKERS" not in os.environ:
        return int(os.environ.get("GCLOUD_STATUS", "0"))
    homes = sorted(Path(os.environ["WORKERS"]).iterdir())
    if words[3] == "scp":
        for home in homes:
            shutil.copy(words[4], home / words[5].partition(":")[2])
    if words[3] == "ssh":
        command = next(word for word in words if word.startswith("--command="))
        for home in homes:
            done = subprocess.run(
                ["bash", "-c", command.partition("=")[2]],
                cwd=home,
                env={**os.environ, "HOME": str(home)},
                stdin=subprocess.DEVNULL,
            )
            if done.returncode != 0:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
