#!/usr/bin/env bash
# On a worker, from setup.sh: make ~/ste_jax/incoming the installed source.
#
# uv brings the Python that the package needs where the image has an older one.
set -euo pipefail
cd "$HOME/ste_jax"
mkdir -p work

exec 9>work/run.lock
flock -n 9 || {
  echo "$(hostname): a run is going here; wait for its end, or delete the slice" >&2
  exit 1
}
rm -rf source
mv incoming source

PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet --upgrade uv
python3 -m uv venv --quiet --clear --python 3.12 venv
python3 -m uv pip install --quiet --python venv/bin/python './source[tpu,gcs]'
echo "$(hostname): installed $(venv/bin/ste --version)"
