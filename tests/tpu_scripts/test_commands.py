"""Do the launch scripts call gcloud with the right words, tell them before, and refuse odd ones?"""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from tests.tpu_scripts.conftest import Desk

ZONE = "--zone=us-central2-b"
TPU_VM = ["compute", "tpus", "tpu-vm"]
INSTALL = (
    "rm -rf ste_jax/incoming && mkdir -p ste_jax/incoming"
    " && tar -xzf ste_jax.tar.gz -C ste_jax/incoming --strip-components=1"
    " && bash ste_jax/incoming/tpu_scripts/remote/install.sh"
)
START = (
    '[ -x ste_jax/venv/bin/ste ] || { echo "nothing is installed here: run setup.sh" >&2; exit 1; }'
    "; bash ste_jax/source/tpu_scripts/remote/start.sh"
)

# A call of a script -> the gcloud calls that it makes, where {root} is the checkout.
CASES = {
    "create": (
        ["create.sh", "pod", ZONE, "--type", "v5litepod-16", "--version=tpu-ubuntu2204-base"],
        [
            [*TPU_VM, "create", "pod", "--accelerator-type=v5litepod-16"]
            + ["--version=tpu-ubuntu2204-base", ZONE]
        ],
    ),
    "create on spot": (
        [
            "create.sh",
            "--spot",
            "--project",
            "lab-1",
            "--type=v4-8",
            "--version=v2-alpha",
            ZONE,
            "a",
        ],
        [
            [*TPU_VM, "create", "a", "--accelerator-type=v4-8", "--version=v2-alpha", "--spot"]
            + [ZONE, "--project=lab-1"]
        ],
    ),
    "setup": (
        ["setup.sh", "pod", ZONE],
        [
            [
                *TPU_VM,
                "scp",
                "{root}/build/tpu/pod.tar.gz",
                "pod:ste_jax.tar.gz",
                "--worker=all",
                ZONE,
            ],
            [*TPU_VM, "ssh", "pod", "--worker=all", f"--command={INSTALL}", ZONE],
        ],
    ),
    "setup from a file": (
        ["setup.sh", "pod", ZONE, "--tarball", "my run.yaml"],
        [
            [*TPU_VM, "scp", "my run.yaml", "pod:ste_jax.tar.gz", "--worker=all", ZONE],
            [*TPU_VM, "ssh", "pod", "--worker=all", f"--command={INSTALL}", ZONE],
        ],
    ),
    "launch a shipped config": (
        ["launch.sh", "pod", "smollm2-135m", "iterations=2", "--dir=gs://b/runs/one/", ZONE],
        [
            [*TPU_VM, "ssh", "pod", "--worker=all"]
            + [
                f"--command={START} gs://b/runs/compiled smollm2-135m iterations=2"
                " --dir gs://b/runs/one --distributed",
                ZONE,
            ],
        ],
    ),
    "launch a file": (
        ["launch.sh", "pod", "my run.yaml", "--dir", "/mnt/nfs/one", ZONE, "--", "--debug"],
        [
            [*TPU_VM, "scp", "my run.yaml", "pod:ste_jax.yaml", "--worker=all", ZONE],
            [*TPU_VM, "ssh", "pod", "--worker=all"]
            + [
                f"--command={START} /mnt/nfs/compiled config.yaml --debug"
                " --dir /mnt/nfs/one --distributed",
                ZONE,
            ],
        ],
    ),
    "follow": (
        ["follow.sh", "pod", ZONE],
        [
            [*TPU_VM, "ssh", "pod", "--worker=0"]
            + ["--command=tail -n 100 -F ste_jax/work/run.log", ZONE]
        ],
    ),
    "delete": (["delete.sh", "pod", ZONE], [[*TPU_VM, "delete", "pod", ZONE]]),
    "delete unasked": (
        ["delete.sh", "pod", ZONE, "--yes"],
        [[*TPU_VM, "delete", "pod", "--quiet", ZONE]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_are_exact_and_a_dry_run_tells_them(desk: Desk, case: str) -> None:
    (script, *words), wanted = CASES[case]
    calls = [[word.replace("{root}", str(desk.root)) for word in call] for call in wanted]

    told = desk.call(script, "--dry-run", *words)
    assert (told.returncode, told.stderr) == (0, "")
    lines = [shlex.split(line) for line in told.stdout.splitlines()]
    assert [line[1:] for line in lines if line[0] == "gcloud"] == calls
    assert desk.calls() == []
    assert not (desk.root / "build").exists()

    done = desk.call(script, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert desk.calls() == calls


GOOD = {
    "create.sh": ["pod", ZONE, "--type=v4-8", "--version=v2-alpha"],
    "setup.sh": ["pod", ZONE],
    "launch.sh": ["pod", "smollm2-135m", "--dir=gs://b/one", ZONE],
    "follow.sh": ["pod", ZONE],
    "delete.sh": ["pod", ZONE],
}
ODD = ["a b", "a'b", 'a"b', "a;b", "$(b)", "a\nb", "-a", "A", "ü"]


@pytest.mark.parametrize("script", GOOD)
def test_help_shows_every_option(desk: Desk, script: str) -> None:
    told = desk.call(script, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert f"  {script} NAME " in told.stdout
    text = (desk.root / "tpu_scripts" / script).read_text()
    own = " ".join(re.findall(r"(?:values|switches)='([^']*)'", text)).split()
    for option in [*own, "zone", "project", "dry-run"]:
        assert f"--{option}" in told.stdout


def refused(desk: Desk, script: str, words: list[str]) -> str:
    """The one sentence with which a script refuses its words."""
    done = desk.call(script, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert desk.calls() == []
    assert done.stderr.startswith(f"{script}: ")
    return done.stderr.removeprefix(f"{script}: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("script", "words", "missing"),
    [
        *((script, [], "the name of the slice") for script in GOOD),
        *((script, ["pod"], "--zone") for script in GOOD),
        ("create.sh", ["pod", ZONE, "--version=v2-alpha"], "--type"),
        ("create.sh", ["pod", ZONE, "--type=v4-8"], "--version"),
        ("launch.sh", ["pod", "smollm2-135m", ZONE], "--dir"),
        ("launch.sh", ["pod", "--dir=gs://b/one", ZONE], "the config"),
    ],
)
def test_a_missing_word_is_named(desk: Desk, script: str, words: list[str], missing: str) -> None:
    assert refused(desk, script, words).startswith(f"{missing} is missing (")


@pytest.mark.parametrize("script", GOOD)
def test_odd_words_are_refused(desk: Desk, script: str) -> None:
    name, *rest = GOOD[script]
    for odd in ODD:
        if not odd.startswith("-"):
            assert "must look like" in refused(desk, script, [odd, *rest])
        for at, word in enumerate(rest):
            if word.startswith("--"):
                words = [name, *rest[:at], f"{word.partition('=')[0]}={odd}", *rest[at + 1 :]]
                assert "must look like" in refused(desk, script, words)
        assert "must look like" in refused(desk, script, [*GOOD[script], "--project", odd])


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        (
            "create.sh",
            [*GOOD["create.sh"], "--spott"],
            "there is no option --spott; --help lists them",
        ),
        ("create.sh", [*GOOD["create.sh"], "--spot=no"], "there is no option --spot=no"),
        ("create.sh", [*GOOD["create.sh"], "more"], "'more' is one word too many"),
        ("create.sh", ["pod", "--zone"], "--zone needs a value"),
        (
            "setup.sh",
            ["pod", ZONE, "--ref=a", "--tarball=b"],
            "--ref and --tarball exclude each other",
        ),
        ("setup.sh", ["pod", ZONE, "--ref=--output=x"], "--ref must look like v0.1.0"),
        ("setup.sh", ["pod", ZONE, "--tarball=none.tar.gz"], "--tarball none.tar.gz is not a file"),
        ("launch.sh", ["pod", "no.yaml", ZONE, "--dir=/a/b"], "the config no.yaml is not a file"),
        ("launch.sh", ["pod", "smollm2-135m", ZONE, "--dir=gs://b"], "--dir must look like gs://"),
    ],
)
def test_what_is_wrong_is_told(desk: Desk, script: str, words: list[str], sentence: str) -> None:
    assert sentence in refused(desk, script, words)


def test_a_colon_in_a_path_is_not_a_host(desk: Desk) -> None:
    (desk.root / "a:b.yaml").write_text("")
    words = ["pod", "a:b.yaml", ZONE, "--dir=/a/b"]
    assert "has a colon in its path" in refused(desk, "launch.sh", words)


@pytest.mark.parametrize("script", GOOD)
def test_a_failure_of_gcloud_is_passed_on(desk: Desk, script: str) -> None:
    desk.env["GCLOUD_STATUS"] = "3"
    assert desk.call(script, *GOOD[script]).returncode == 3
    assert len(desk.calls()) == 1


def test_without_gcloud_only_a_dry_run_works(desk: Desk) -> None:
    bare = desk.root.parent / "bare"
    bare.mkdir()
    for tool in ("bash", "dirname"):
        (bare / tool).symlink_to(shutil.which(tool) or "")
    desk.env["PATH"] = str(bare)
    assert desk.call("follow.sh", "pod", ZONE, "--dry-run").returncode == 0
    done = desk.call("follow.sh", "pod", ZONE)
    assert done.returncode == 1
    assert done.stderr.startswith("follow.sh: gcloud is not on the PATH")
