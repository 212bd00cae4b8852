#!/usr/bin/env bash
# On a worker, from launch.sh: start `ste run` in the background, once.
#
#   start.sh CACHE_DIR CONFIG ARGUMENT ...
#
# Compiled programs are kept in CACHE_DIR; the rest goes to `ste run`. A CONFIG of config.yaml is the
# file that launch.sh has copied: it is taken only now, so that a run that is going keeps its own.
set -euo pipefail
cd "$HOME/ste_jax/work"

# The background processes inherit the lock, so it is held for as long as any of them lives.
exec 9>run.lock
flock -n 9 || {
  echo "$(hostname): a run is already going here" >&2
  exit 1
}
if [[ $2 == config.yaml ]]; then
  mv "$HOME/ste_jax.yaml" config.yaml
fi
export JAX_COMPILATION_CACHE_DIR=$1
setsid bash ../source/tpu_scripts/remote/keep_running.sh ../venv/bin/ste run "${@:2}" \
  >>run.log 2>&1 </dev/null &
