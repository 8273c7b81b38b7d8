#!/usr/bin/env bash
# Prepare a data set on many nodes: each task of an array writes a part of the shards, then one job
# merges them into the index.
#
#   sbatch --array=1-16 --cpus-per-task=32 slurm/prepare_array.sh SOURCE --out DIR [--options]
#
# Submit from the root of the project. The options are those of tools/prepare.py. The first task
# submits the merge, with the array's partition, account and QOS; it starts when all tasks have
# succeeded.
#
#   PARTS=16 sbatch --array=3,7 slurm/prepare_array.sh SOURCE --out DIR
#
# runs tasks 3 and 7 of 16 again; existing shards are kept.
#
# A task that nears its time limit requeues itself and continues, if it finished at least one shard;
# the merge waits for all of them. Interpreter and environment: slurm/site.sh.example.
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# shellcheck source=slurm/lib.sh
source "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/lib.sh" ||
  { echo "error: submit from the root of the project, or set PROJECT to it" >&2 && exit 2; }
enter_project
set -e

if [[ ${PREPARE_STEP:-part} == merge ]]; then
  trap '' USR1 # a merge cannot continue, only start over
  exec_single "$PYTHON" "$project/tools/prepare.py" "$@" --merge
fi

if [[ -z ${SLURM_ARRAY_TASK_ID:-} || $SLURM_ARRAY_TASK_ID == 0 ]]; then
  fail "$EXIT_USAGE" "submit this as an array job whose tasks start at 1: sbatch --array=1-16 \
slurm/prepare_array.sh SOURCE --out DIR"
fi
parts=${PARTS:-${SLURM_ARRAY_TASK_MAX:-1}}

# Submit the merge once: a requeued task starts over, but with a restart count above 0.
if [[ $SLURM_ARRAY_TASK_ID == "${SLURM_ARRAY_TASK_MIN:-1}" &&
  ${SLURM_RESTART_COUNT:-0} == 0 ]]; then
  options=(--dependency="afterok:$SLURM_ARRAY_JOB_ID" --kill-on-invalid-dep=yes
    --job-name=prepare-merge)
  [[ -z ${SLURM_JOB_PARTITION:-} ]] || options+=(--partition="$SLURM_JOB_PARTITION")
  [[ -z ${SLURM_JOB_ACCOUNT:-} ]] || options+=(--account="$SLURM_JOB_ACCOUNT")
  [[ -z ${SLURM_JOB_QOS:-} ]] || options+=(--qos="$SLURM_JOB_QOS")
  PREPARE_STEP=merge PROJECT=$project sbatch "${options[@]}" "$project/slurm/prepare_array.sh" "$@"
fi

out=$(option_value out "$@") ||
  fail "$EXIT_USAGE" "name the folder of the prepared data: --out DIR"
# The last of two equal options wins, so --workers among the arguments overrides this one.
run_or_requeue "$out/parts" "$PYTHON" "$project/tools/prepare.py" \
  --workers "${SLURM_CPUS_PER_TASK:-1}" "$@" --part "$SLURM_ARRAY_TASK_ID/$parts"
