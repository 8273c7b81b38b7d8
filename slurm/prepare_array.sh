#!/usr/bin/env bash
# Prepare a data set on many nodes: an array whose tasks each make a share of the shards, then one job that merges them into the index.
#
#   sbatch --array=1-16 --cpus-per-task=32 slurm/prepare_array.sh SOURCE --out DIR [options of tools/prepare.py]
#
# Submit it from the root of the project. Nodes, partition, account, time and log files go by sbatch's own options or SBATCH_* variables.
# The merge is submitted by the first task, in the same partition and account, and starts when all tasks have succeeded.
#
#   PARTS=16 sbatch --array=3,7 slurm/prepare_array.sh SOURCE --out DIR    tasks 3 and 7 of 16 once more; what stands is not made again
#
# Before its time limit a task goes back into the queue and continues, as long as each start makes a shard; the merge waits for all of them.
#
# The interpreter and the environment: slurm/site.sh.example. The merge keeps them, and the account, partition and QOS of the array.
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
  trap '' USR1 # it would begin anew
  become "$PYTHON" "$project/tools/prepare.py" "$@" --merge
fi

if [[ -z ${SLURM_ARRAY_TASK_ID:-} || $SLURM_ARRAY_TASK_ID == 0 ]]; then
  fail 2 "this is an array job with tasks from 1 on: sbatch --array=1-16 slurm/prepare_array.sh SOURCE --out DIR"
fi
parts=${PARTS:-${SLURM_ARRAY_TASK_MAX:-1}}

# a requeued task starts over with its restart count raised: the merge is submitted once
if [[ $SLURM_ARRAY_TASK_ID == "${SLURM_ARRAY_TASK_MIN:-1}" && ${SLURM_RESTART_COUNT:-0} == 0 ]]; then
  options=(--dependency="afterok:$SLURM_ARRAY_JOB_ID" --kill-on-invalid-dep=yes --job-name=prepare-merge)
  [[ -z ${SLURM_JOB_PARTITION:-} ]] || options+=(--partition="$SLURM_JOB_PARTITION")
  [[ -z ${SLURM_JOB_ACCOUNT:-} ]] || options+=(--account="$SLURM_JOB_ACCOUNT")
  [[ -z ${SLURM_JOB_QOS:-} ]] || options+=(--qos="$SLURM_JOB_QOS")
  PREPARE_STEP=merge PROJECT=$project sbatch "${options[@]}" "$project/slurm/prepare_array.sh" "$@"
fi

out=$(value_of out "$@") || fail 2 "name the folder of the prepared data: --out DIR"
# the last of two equal options counts, so that --workers among the arguments wins
run_or_requeue "$out/parts" "$PYTHON" "$project/tools/prepare.py" --workers "${SLURM_CPUS_PER_TASK:-1}" "$@" --part "$SLURM_ARRAY_TASK_ID/$parts"
