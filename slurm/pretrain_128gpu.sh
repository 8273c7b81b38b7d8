#!/usr/bin/env bash
# Pre-train on 16 nodes x 8 GPUs, one rank per GPU. Survives time limits, preemption, dead ranks and
# bad nodes (docs/slurm.md).
#
#   sbatch slurm/pretrain_128gpu.sh [RECIPE] [--options of pretrain/train.py]
#
# Submit from the root of the project. --out defaults to runs/RECIPE. Without a RECIPE, the paper's
# base model is trained: webvid-howto --init-from weights/vit-base (make that folder first, see
# docs/guides/pretrain.md). The same command with the same --out resumes. Options of
# sbatch go before this script's name and override the lines below: sbatch --nodes=2 --gpus-per-node=4 --partition=gpu ...
# slurm/site.sh.example lists all other settings that differ between clusters.
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

if (($#)) && [[ $1 != -* ]]; then
  recipe=$1
  shift
else
  recipe=webvid-howto
  option_value init-from "$@" >/dev/null || set -- "$@" --init-from weights/vit-base
fi
out=$(option_value out "$@") || { out=runs/$recipe && set -- "$@" --out "$out"; }
run_job "$out" "$project/pretrain/train.py" "$recipe" "$@"
