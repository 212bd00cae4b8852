#!/usr/bin/env bash
# Run a command, and again for as long as it ends with 75 (stopped in good order, to be run again).
#
#   keep_running.sh COMMAND ARGUMENT ...
#
# Asked to stop (SIGTERM), it passes that on, waits for the command to save its work, and ends with
# the command's status.
set -uo pipefail

child='' stopping=''
# shellcheck disable=SC2329  # the trap calls it
stop() {
  stopping=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

status=75
while [[ $status == 75 && ! $stopping ]]; do
  "$@" &
  child=$!
  # The trap may have run before it could know the child.
  [[ -z $stopping ]] || kill -TERM "$child" 2>/dev/null
  # A signal ends `wait` before the command has ended.
  while
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null
  do :; done
  child=''
  printf '%s ended with status %s at %s\n' "$1" "$status" "$(date -u '+%F %T')"
  [[ $status != 75 || $stopping ]] || sleep 1
done
exit "$status"
