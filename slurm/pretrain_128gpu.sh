#!/usr/bin/env bash
# Pre-train on 16 nodes x 8 GPUs, one rank per GPU, through time limits, preemption, dead ranks and bad nodes (docs/slurm.md).
#
#   sbatch slurm/pretrain_128gpu.sh [RECIPE] [--options of pretrain/train.py]
#
# Submit it from the root of the project. RECIPE is webvid-howto unless given, --out is runs/RECIPE. The same command on the same --out resumes.
# sbatch's own options go before the script's name and win over the lines below: sbatch --nodes=2 --gpus-per-node=4 --partition=gpu ...
# Everything else that differs between clusters: slurm/site.sh.example.
#SBATCH --job-name=pretrain
#SBATCH --nodes=16
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# shellcheck source=slurm/lib.sh
source "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/lib.sh" ||
  { echo "error: submit from the root of the project, or set PROJECT to it" >&2 && exit 2; }
enter_project
require_job "sbatch slurm/pretrain_128gpu.sh [RECIPE] [--options]"

recipe=webvid-howto
if (($#)) && [[ $1 != -* ]]; then
  recipe=$1
  shift
fi
out=$(value_of out "$@") || { out=runs/$recipe && set -- "$@" --out "$out"; }
run_job "$out" "$project/pretrain/train.py" "$recipe" "$@"
