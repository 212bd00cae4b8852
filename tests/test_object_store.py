"""A run in a bucket (`gs://`) is the run on a disk: made, killed, resumed and read there.

The bucket is an emulator's, in memory, on this machine. Paths reach it by fsspec, Orbax by
TensorStore.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import running
from tests.comparing import assert_identical

pytest.importorskip("gcp_storage_emulator")
pytest.importorskip("gcsfs")

SMALL: dict[str, Any] = {
    "iterations": 1,
    "pool__limit": 300,
    "pool__shards": 2,
    "select__train": 60,
    "select__heldout": 30,
    "pair__min_answer_chars": 2,
    "finetune__batch_rows": 2,
    "finetune__epochs": 4.0,
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket; the environment of what is started meanwhile leads there."""
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    plain = objects.download

    def download(request: Any, response: Any, storage: Any, *more: Any, **words: Any) -> None:
        """TensorStore writes only over the generation that it has read: the real store tells it."""
        names = (request.params["bucket_name"], request.params["object_id"])
        with contextlib.suppress(NotFound):
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
        plain(request, response, storage, *more, **words)

    routes = tuple(
        (path, {verb: download if do is plain else do for verb, do in verbs.items()})
        for path, verbs in emulator.HANDLERS
    )
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    place = f"http://localhost:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", download)  # what `objects.get` calls
        patch.setattr(emulator, "HANDLERS", routes)
        patch.setenv("EPATH_USE_TF", "false")
        patch.setenv("STORAGE_EMULATOR_HOST", place)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", place)
        patch.setenv("GCE_METADATA_ROOT", "localhost:1")  # nobody is there to ask who we are
        patch.setenv("NO_GCE_CHECK", "true")
        yield "gs://bucket"
    server.stop()


COPY = """
import sys
import gcsfs
store = gcsfs.GCSFileSystem(token="anon")
store.get(sys.argv[1] + "/", sys.argv[2] + "/", recursive=True)
"""


def copied(source: str, target: Path) -> Path:
    """What lies in the bucket, on the disk."""
    subprocess.run([sys.executable, "-c", COPY, source, os.fspath(target)], check=True)
    return target


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket: str, tmp_path: Path) -> None:
    config = running.write_config(tmp_path, **SMALL)
    assert running.run(["run", str(config), "--dir", str(tmp_path / "disk")]) == 0
    words = ["run", str(config), "--dir", f"{bucket}/run"]
    assert running.run(words, place="step:3") == -signal.SIGKILL
    assert running.run(words) == 0
    there = copied(f"{bucket}/run", tmp_path / "there")
    assert_identical(tmp_path / "disk", there)
    assert (there / "report" / "index.html").exists()
