#!/usr/bin/env bash
# Delete a slice, with all that lies on its workers. gcloud asks first.
#
#   delete.sh NAME --zone ZONE [--yes] [--project PROJECT] [--dry-run]
#
#   --yes       do not ask
#   --project   the cloud project; without it, gcloud's own setting
#   --dry-run   print the command and do nothing

values='' switches='yes'
yes=''
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
at_most 1

tpu_vm delete "$name" ${yes:+--quiet}
