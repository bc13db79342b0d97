#!/usr/bin/env bash
# Draw videos from prompts, in one process or in several: one a GPU, or on the CPU where there is none.
#
#   bash inference.sh                                                                     # the quickstart's last run
#   bash inference.sh configs/cogvideox_2b.yaml configs/inference.yaml --prompt "a kite"  # a published model
#   bash inference.sh --run runs/mine/sft-11-24-09-30 --prompts prompts.txt               # a run of one's own
set -euo pipefail

# shellcheck source=tools/launch.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools/launch.sh"

describe() {
    cat <<EOT
usage: bash inference.sh [CONFIG.yaml ...] [flags]

Draws videos from prompts with sample_video.py.

  no argument     what the last quickstart run draws for the captions of its clips
  CONFIG.yaml     one or more, merged in order; looked for where you are, then in the project's folder
  flags           passed on to sample_video.py unchanged (python sample_video.py --help lists them)

  bash inference.sh configs/cogvideox_2b.yaml configs/inference.yaml --prompt "a red kite over a beach"
  bash inference.sh --run runs/mine/sft-11-24-09-30 --interactive

environment variables
  PYTHON          the interpreter to use; else the active environment where it meets requirements.txt, else .venv,
                  which is made on the first run
  NPROC_PER_NODE  processes on this machine, among which the clips are dealt out (default 1)
  DRY_RUN=1       print the command and run nothing
EOT
}

last_quickstart_run() { # the folder of the quickstart run whose checkpoint is the newest; nothing where there is none
    local pointer newest=""
    for pointer in "$project_dir"/runs/quickstart/*/latest; do
        if [ -f "$pointer" ] && { [ -z "$newest" ] || [ "$pointer" -nt "$newest" ]; }; then
            newest="$pointer"
        fi
    done
    [ -z "$newest" ] || dirname "$newest"
}

if wants_help "$@"; then
    describe
    exit
fi

processes="${NPROC_PER_NODE:-1}"
[[ "$processes" =~ ^[1-9][0-9]{0,3}$ ]] || fail 2 "NPROC_PER_NODE=$processes: it must be a whole number from 1 to 9999"

SAMPLE=("$project_dir/sample_video.py")
if [ $# -eq 0 ]; then
    run="$(last_quickstart_run)"
    [ -n "$run" ] || fail 2 "there is no quickstart run to draw from yet: \`bash finetune_single_gpu.sh\` makes one;" \
        "or name a model or a run, see \`bash inference.sh --help\`"
    SAMPLE+=(--run "$run" --batch-size 6)
    for label in "$project_dir"/assets/quickstart/clips/labels/*.txt; do
        SAMPLE+=(--prompt "$(cat "$label")")
    done
fi
while [ $# -gt 0 ] && [[ "$1" == *.yaml || "$1" == *.yml ]]; do
    CONFIGS+=("$(locate_config "$1")")
    shift
done
[ ${#CONFIGS[@]} -eq 0 ] || SAMPLE+=(--base "${CONFIGS[@]}")
SAMPLE+=("$@")

[ "$(visible_gpus)" -eq 0 ] || prefer_expandable_segments
[ -n "${DRY_RUN:-}" ] || use_environment requirements.txt
if [ "$processes" -eq 1 ]; then
    LAUNCH_ENV+=(WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1)
    launch "${PYTHON:-python}" "${SAMPLE[@]}"
fi
# Without -- torchrun takes --run for the start of its own --run-path.
launch "${PYTHON:-python}" "$project_dir/tools/torchrun.py" --standalone --local_addr=127.0.0.1 \
    --nproc_per_node="$processes" -- "${SAMPLE[@]}"
