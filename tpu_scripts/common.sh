# Sourced by the scripts beside it: how they read their words, what they refuse, how they call gcloud.
#
# A script sets `values` (options that take a value) and `switches` (options that do not), each
# readable afterwards as a variable of that name, and calls `parse "$@"`. Kept to what bash 3.2 knows.
# shellcheck shell=bash
set -euo pipefail

program=${0##*/}
words=()
zone='' project='' dry_run=''

# The request was wrong: one sentence, status 2.
refuse() {
  printf '%s: %s\n' "$program" "$1" >&2
  exit 2
}

# The comment at the head of the script is its help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

parse() {
  local option value
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        words+=("${@:2}")
        break
        ;;
      --*)
        option=${1%%=*}
        option=${option#--}
        if [[ " dry-run ${switches-} " == *" $option "* && $1 != *=* ]]; then
          printf -v "${option//-/_}" yes
        elif [[ " zone project ${values-} " == *" $option "* ]]; then
          if [[ $1 == *=* ]]; then
            value=${1#*=}
          else
            (($# > 1)) || refuse "--$option needs a value"
            value=$2
            shift
          fi
          printf -v "${option//-/_}" '%s' "$value"
        else
          refuse "there is no option $1; --help lists them"
        fi
        ;;
      *) words+=("$1") ;;
    esac
    shift
  done

  name=${words[0]-}
  must_match 'the name of the slice' "$name" '[a-z]([-a-z0-9]{0,60}[a-z0-9])?' my-slice
  must_match --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-central2-b
  [[ -z $project ]] || must_match --project "$project" '[a-z][-a-z0-9.:]*' my-project
  [[ $dry_run ]] || command -v gcloud >/dev/null || {
    printf '%s: gcloud is not on the PATH: install the Google Cloud CLI first\n' "$program" >&2
    exit 1
  }
}

# must_match WHAT VALUE PATTERN EXAMPLE: these words end up in commands, so nothing odd gets in.
must_match() {
  local LC_ALL=C
  [[ $2 ]] || refuse "$1 is missing (as in $4); --help tells more"
  [[ $2 =~ ^($3)$ ]] || refuse "$1 must look like $4, not '$2'"
}

# at_most N: how many words a script takes.
at_most() {
  ((${#words[@]} <= $1)) || refuse "'${words[$1]}' is one word too many; --help tells more"
}

# A file that is copied to the workers; scp takes what stands before a colon for a host.
must_be_file() {
  [[ -f $2 ]] || refuse "$1 $2 is not a file"
  [[ $2 != *:* ]] || refuse "$1 $2 has a colon in its path, which scp takes for a host: rename it"
}

# A command line from words, quoted so that a shell reads back the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Run a command; under --dry-run only print it.
run() {
  if [[ $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# tpu_vm VERB ARGUMENT...: one gcloud call on slices of the zone and project.
tpu_vm() {
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+--project="$project"}
}

on_all_workers() {
  tpu_vm ssh "$name" --worker=all --command="$1"
}

to_all_workers() {
  tpu_vm scp "$1" "$name:$2" --worker=all
}
