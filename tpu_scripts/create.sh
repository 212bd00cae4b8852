#!/usr/bin/env bash
# Create a TPU slice.
#
#   create.sh NAME --zone ZONE --type TYPE --version VERSION [--spot] [--project PROJECT] [--dry-run]
#
#   --type      the accelerator and its size, as in v5litepod-16 or v4-32
#   --version   the runtime image, as in tpu-ubuntu2204-base
#   --spot      cheaper, and taken away when others need it: delete the slice then, and create, set
#               up and launch again; the run goes on from what lies in its directory
#   --project   the cloud project; without it, gcloud's own setting
#   --dry-run   print the commands and do nothing

values='type version' switches='spot'
type='' version='' spot=''
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
at_most 1
must_match --type "$type" '[a-z0-9]+-[0-9]+' v5litepod-16
must_match --version "$version" '[a-z0-9][-a-z0-9.]*' tpu-ubuntu2204-base

tpu_vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
