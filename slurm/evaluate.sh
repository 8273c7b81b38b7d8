#!/usr/bin/env bash
# Evaluate a checkpoint on one node, one rank per GPU (docs/slurm.md).
#
#   sbatch slurm/evaluate.sh finetune/SCRIPT.py --checkpoint PATH [--options of the script]
#
# The same as slurm/finetune_8gpu.sh with --eval-only, but with fewer GPUs and without a signal
# before the time limit: finished batches are cached, and there is no checkpoint to save.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=60G
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# shellcheck source=slurm/lib.sh
source "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/lib.sh" ||
  { echo "error: submit from the root of the project, or set PROJECT to it" >&2 && exit 2; }
enter_project
require_job "sbatch slurm/evaluate.sh finetune/SCRIPT.py --checkpoint PATH [--options]"
run_script "$@" --eval-only
