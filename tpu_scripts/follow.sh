#!/usr/bin/env bash
# Show the log of a launched run as it grows: worker 0's, which has a line at least every 30 seconds and
# the tables at its end.
#
#   follow.sh NAME --zone ZONE [--project PROJECT] [--dry-run]
#
#   --project   the cloud project; without it, gcloud's own setting
#   --dry-run   print the command and do nothing
#
# Ctrl-C ends the showing, not the run.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
at_most 1

tpu_vm ssh "$name" --worker=0 --command='tail -n 100 -F ste_jax/work/run.log'
