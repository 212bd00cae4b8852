#!/usr/bin/env bash
# Install the package with its TPU extra on every worker of a slice, for NAME's launch.sh.
#
#   setup.sh NAME --zone ZONE [--ref REF | --tarball FILE] [--project PROJECT] [--dry-run]
#
#   --ref       the commit, branch or tag of this checkout to install; HEAD without it. What is not
#               committed does not go along.
#   --tarball   a source archive (.tar.gz with one top folder, as `git archive` or an sdist) instead
#   --project   the cloud project; without it, gcloud's own setting
#   --dry-run   print the commands and do nothing
#
# On a worker, everything lies in ~/ste_jax: source/, venv/ and work/ (the log, the config).

values='ref tarball' switches=''
ref='' tarball=''
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
at_most 1
[[ -z $ref || -z $tarball ]] || refuse '--ref and --tarball exclude each other'

if [[ $tarball ]]; then
  must_be_file --tarball "$tarball"
else
  must_match --ref "${ref:=HEAD}" '[A-Za-z0-9][-A-Za-z0-9._/~^@]*' v0.1.0
  tarball=$root/build/tpu/$name.tar.gz
  run mkdir -p "$root/build/tpu"
  run git -C "$root" archive --format=tar.gz --prefix=ste_jax/ --output="$tarball" "$ref"
fi

to_all_workers "$tarball" ste_jax.tar.gz
unpack='rm -rf ste_jax/incoming && mkdir -p ste_jax/incoming'
unpack+=' && tar -xzf ste_jax.tar.gz -C ste_jax/incoming --strip-components=1'
on_all_workers "$unpack && bash ste_jax/incoming/tpu_scripts/remote/install.sh"
