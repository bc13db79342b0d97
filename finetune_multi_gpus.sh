#!/usr/bin/env bash
# Fine-tune CogVideoX in several processes: one a GPU, on one or more machines, or on the CPU where there is no GPU.
#
#   bash finetune_multi_gpus.sh                                                    # the quickstart
#   bash finetune_multi_gpus.sh configs/cogvideox_5b_lora.yaml configs/sft.yaml    # one's own run
set -euo pipefail

# shellcheck source=tools/launch.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools/launch.sh"

LAUNCHER_HELP="\
  NPROC_PER_NODE  processes on this machine (default: the GPUs that are visible, else 2)
  NNODES          machines (default 1); run this script on each of them, with the same arguments and --seed
  NODE_RANK       which of them this one is, from 0 (default 0)
  MASTER_ADDR     name or address of machine 0; needed where NNODES is 2 or more
  MASTER_PORT     a free port there (default: any on one machine, 29500 on several)
  OMP_NUM_THREADS threads of each process (default: the cores shared out among the processes)
"

if wants_help "$@"; then
    usage finetune_multi_gpus.sh "Fine-tunes CogVideoX in several processes, one a GPU, started by torchrun." "$LAUNCHER_HELP"
    exit
fi

require_number() { # NAME VALUE LOWEST HIGHEST
    if ! [[ "$2" =~ ^(0|[1-9][0-9]{0,8})$ ]] || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
        fail 2 "$1=$2: it must be a whole number from $3 to $4"
    fi
}

cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }

gpus="$(visible_gpus)"
NPROC_PER_NODE="${NPROC_PER_NODE:-$([ "$gpus" -gt 0 ] && echo "$gpus" || echo 2)}"
NNODES="${NNODES:-1}"
NODE_RANK="${NODE_RANK:-0}"
require_number NPROC_PER_NODE "$NPROC_PER_NODE" 1 1024
require_number NNODES "$NNODES" 1 100000
require_number NODE_RANK "$NODE_RANK" 0 $((NNODES - 1))
[ -z "${MASTER_PORT:-}" ] || require_number MASTER_PORT "$MASTER_PORT" 1 65535
[ "$gpus" -eq 0 ] || [ "$NPROC_PER_NODE" -le "$gpus" ] ||
    fail 2 "NPROC_PER_NODE=$NPROC_PER_NODE: only $gpus GPUs are visible, and each process needs its own"
[ "$NNODES" -eq 1 ] || [ -n "${MASTER_ADDR:-}" ] ||
    fail 2 "NNODES=$NNODES: set MASTER_ADDR to the name or address of machine 0, the same on every machine"

parse_arguments "$@"
# Each machine would draw another seed, and the ranks would train apart.
[ "$NNODES" -eq 1 ] || has_seed || fail 2 "NNODES=$NNODES: give --seed NUMBER, the same on every machine"
choose_seed
train_arguments

if [ "$NNODES" -eq 1 ] && [ -z "${MASTER_ADDR:-}${MASTER_PORT:-}" ]; then
    rendezvous=(--standalone --local_addr=127.0.0.1)
else
    rendezvous=(--nnodes="$NNODES" --node_rank="$NODE_RANK" --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${MASTER_PORT:-29500}")
fi
[ "$gpus" -eq 0 ] || prefer_expandable_segments
threads=$(($(cores) / NPROC_PER_NODE))
[ -n "${OMP_NUM_THREADS:-}" ] || LAUNCH_ENV+=(OMP_NUM_THREADS=$((threads > 1 ? threads : 1)))
[ -n "${DRY_RUN:-}" ] || use_environment requirements.txt
launch "${PYTHON:-python}" "$project_dir/tools/torchrun.py" "${rendezvous[@]}" --nproc_per_node="$NPROC_PER_NODE" "${TRAIN[@]}"
