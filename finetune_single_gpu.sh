#!/usr/bin/env bash
# Fine-tune CogVideoX in one process: on one GPU, or on the CPU where there is none.
#
#   bash finetune_single_gpu.sh                                                    # the quickstart
#   bash finetune_single_gpu.sh configs/cogvideox_2b_lora.yaml configs/sft.yaml    # one's own run
set -euo pipefail

# shellcheck source=tools/launch.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools/launch.sh"

if wants_help "$@"; then
    usage finetune_single_gpu.sh "Fine-tunes CogVideoX in one process, on one GPU or on the CPU." ""
    exit
fi

parse_arguments "$@"
choose_seed
train_arguments

LAUNCH_ENV+=(WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1)
[ "$(visible_gpus)" -eq 0 ] || prefer_expandable_segments
[ -n "${DRY_RUN:-}" ] || use_environment requirements.txt
launch "${PYTHON:-python}" "${TRAIN[@]}"
