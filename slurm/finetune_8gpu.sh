#!/usr/bin/env bash
# Fine-tune on one node with 8 GPUs, one rank per GPU. Survives time limits, preemption, dead ranks
# and a bad node (docs/slurm.md).
#
#   sbatch slurm/finetune_8gpu.sh finetune/SCRIPT.py [--options of the script]
#
# Submit from the root of the project. --out defaults to runs/SCRIPT; the same command with the same
# --out resumes. Options of sbatch go before this script's name and override the lines below:
# sbatch --gpus-per-node=4 --time=2:00:00 ...
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=60G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# shellcheck source=slurm/lib.sh
source "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/lib.sh" ||
  { echo "error: submit from the root of the project, or set PROJECT to it" >&2 && exit 2; }
enter_project
require_job "sbatch slurm/finetune_8gpu.sh finetune/SCRIPT.py [--options]"
run_script "$@"
