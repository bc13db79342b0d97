# Sourced by finetune_single_gpu.sh and finetune_multi_gpus.sh: their arguments, the seed, and what a run is started with.
#
# parse_arguments turns `[CONFIG.yaml …] [flags]` into the arrays CONFIGS and FLAGS and the value SEED; choose_seed then
# fills SEED where nobody gave one, and train_arguments puts them together again as the array TRAIN.
# shellcheck shell=bash

# shellcheck source=tools/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

CONFIGS=()
FLAGS=()
SEED=""
IS_QUICKSTART=false
LAUNCH_ENV=() # NAME=VALUE pairs that the run gets beside the environment

usage() { # NAME WHAT LAUNCHER_HELP
    cat <<EOF
usage: bash $1 [CONFIG.yaml ...] [flags]

$2

  no config       the quickstart (configs/quickstart.yaml): a tiny model, real clips, minutes on two CPU cores
  CONFIG.yaml     one or more, merged in order; looked for where you are, then in the project's folder
  flags           passed on to train_video.py unchanged (python train_video.py --help lists them)

  bash $1
  bash $1 configs/cogvideox_2b_lora.yaml configs/sft.yaml --train-iters 100

environment variables
  PYTHON          the interpreter to use; else the active environment where it meets requirements.txt, else .venv,
                  which is made on the first run
  DRY_RUN=1       print the command and run nothing
$3
The seed is random, the same for all ranks and never 0, unless --seed or a config file sets it. A run that is resumed
keeps its own.
EOF
}

wants_help() { # ARGUMENT...
    local argument
    for argument in "$@"; do
        [[ "$argument" != -h && "$argument" != --help ]] || return 0
    done
    return 1
}

parse_arguments() { # ARGUMENT...
    while [ $# -gt 0 ] && [[ "$1" == *.yaml || "$1" == *.yml ]]; do
        CONFIGS+=("$(locate_config "$1")")
        shift
    done
    local has_base=false
    while [ $# -gt 0 ]; do
        case "$1" in
        --seed)
            [ $# -gt 1 ] || fail 2 "--seed needs a number"
            SEED="$2"
            shift
            ;;
        --seed=*) SEED="${1#--seed=}" ;;
        --base | --base=*)
            has_base=true
            FLAGS+=("$1")
            ;;
        *) FLAGS+=("$1") ;;
        esac
        shift
    done
    if $has_base; then
        [ ${#CONFIGS[@]} -eq 0 ] || fail 2 "config files were given both first (${CONFIGS[*]}) and with --base: use one way"
    elif [ ${#CONFIGS[@]} -eq 0 ]; then
        CONFIGS=("$project_dir/configs/quickstart.yaml")
        IS_QUICKSTART=true
    fi
}

locate_config() { # FILE: as given where it exists, else the project's own file of that name
    if [ ! -e "$1" ] && [ -e "$project_dir/$1" ]; then
        printf '%s' "$project_dir/$1"
    else
        printf '%s' "$1"
    fi
}

has_seed() { # asked for by flag, by override, by a `seed:` in a given file, or by the run that is resumed
    local flag
    [ -z "$SEED" ] || return 0
    for flag in ${FLAGS[@]+"${FLAGS[@]}"}; do
        [[ "$flag" != args.seed=* && "$flag" != --base* && "$flag" != --resume* ]] || return 0
    done
    grep -qsE '^[[:space:]]+seed[[:space:]]*:[[:space:]]*[0-9]' ${CONFIGS[@]+"${CONFIGS[@]}"}
}

choose_seed() { # 1 to 2^31 - 1
    has_seed || SEED=$(($(od -An -N4 -tu4 /dev/urandom) % 2147483647 + 1))
}

train_arguments() {
    TRAIN=("$project_dir/train_video.py")
    [ ${#CONFIGS[@]} -eq 0 ] || TRAIN+=(--base "${CONFIGS[@]}")
    [ -z "$SEED" ] || TRAIN+=(--seed "$SEED")
    TRAIN+=(${FLAGS[@]+"${FLAGS[@]}"})
}

visible_gpus() { # how many GPUs a process started here sees
    command -v nvidia-smi >/dev/null || { echo 0 && return; }
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -cvE '^ *(-1)? *$' || true
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

prefer_expandable_segments() { # clips of many sizes fragment the GPU allocator; torch 2.9 renamed the variable
    [ -n "${PYTORCH_ALLOC_CONF:-}${PYTORCH_CUDA_ALLOC_CONF:-}" ] ||
        LAUNCH_ENV+=(PYTORCH_ALLOC_CONF=expandable_segments:True)
}

launch() { # COMMAND...: print it, then become it; after a quickstart, show what it learned
    printf '+'
    printf ' %q' ${LAUNCH_ENV[@]+"${LAUNCH_ENV[@]}"} "$@"
    printf '\n'
    [ -z "${DRY_RUN:-}" ] || exit 0
    if $IS_QUICKSTART && [ ${#FLAGS[@]} -eq 0 ]; then
        run_quickstart "$@"
    fi
    exec env ${LAUNCH_ENV[@]+"${LAUNCH_ENV[@]}"} "$@"
}

run_quickstart() { # COMMAND...
    local status=0 marker
    marker="$(mktemp)"
    run_with_signals env ${LAUNCH_ENV[@]+"${LAUNCH_ENV[@]}"} "$@" || status=$?
    [ $status -ne 0 ] || $WAS_SIGNALLED || show_samples "$marker" || status=$?
    rm -f "$marker"
    exit $status
}

WAS_SIGNALLED=false

run_with_signals() { # COMMAND...: its status; signals that come here are passed on to it, and it is waited for
    local name child status=0
    "$@" <&0 &
    child=$!
    for name in TERM INT USR1; do
        # shellcheck disable=SC2064  # the child's number is that of now
        trap "WAS_SIGNALLED=true; kill -$name $child 2>/dev/null || true" "$name"
    done
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal has ended the wait, not the child
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT USR1
    return $status
}

show_samples() { # MARKER: hold the samples of the run that is newer than the file MARKER against their clips
    local config
    config="$(find runs "$project_dir/runs" -mindepth 2 -maxdepth 4 -name training_config.yaml -newer "$1" 2>/dev/null |
        tail -n 1)"
    [ -n "$config" ] || fail 1 "the run left no folder in runs/"
    printf '\nThe run: %s\n' "$(dirname "$config")"
    "$PYTHON" "$project_dir/tools/compare_samples.py" "$(dirname "$config")"
}
