#!/usr/bin/env bash
# Start `ste run` on every worker of a slice that setup.sh has prepared, and leave it running.
#
#   launch.sh NAME CONFIG [key=value ...] --zone ZONE --dir RUN [--project PROJECT] [--dry-run]
#             [-- OPTION ...]
#
#   CONFIG      a YAML file here, which is copied to the workers, or the name of a shipped config
#   key=value   knobs laid over the config's
#   --dir       the run's directory, seen by all workers: gs://BUCKET/PATH/RUN, or a path on a file
#               system that they share. Compiled programs are kept beside it, in compiled/, so that
#               the next slice does not compile them again.
#   --project   the cloud project; without it, gcloud's own setting
#   --dry-run   print the commands and do nothing
#   -- OPTION   further options of `ste run`
#
# Where a run stops in good order (status 75, as at a maintenance event) it is started again. To
# resume on another slice, launch there with the same --dir. follow.sh shows the log.

values='dir' switches=''
dir=''
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
dir=${dir%/}
must_match --dir "$dir" '(gs:/)?(/[-A-Za-z0-9._=]+){2,}' gs://my-bucket/runs/first
config=${words[1]-}
[[ $config ]] || refuse 'the config is missing (a YAML file, or a name as smollm2-135m); --help tells more'

if [[ $config == */* || $config == *.y*ml || -f $config ]]; then
  must_be_file 'the config' "$config"
  to_all_workers "$config" ste_jax.yaml
  config=config.yaml
fi
check='[ -x ste_jax/venv/bin/ste ] || { echo "nothing is installed here: run setup.sh" >&2; exit 1; }'
start=$(
  quoted bash ste_jax/source/tpu_scripts/remote/start.sh "${dir%/*}/compiled" \
    "$config" "${words[@]:2}" --dir "$dir" --distributed
)
on_all_workers "$check; $start"
[[ $dry_run ]] || echo "started; to see its log: $(dirname "$0")/follow.sh $name --zone $zone"
