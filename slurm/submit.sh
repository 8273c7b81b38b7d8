#!/usr/bin/env bash
# sbatch with the site file's SBATCH_OPTIONS (partition, account, ...); your own options override
# them.
#
#   slurm/submit.sh [options of sbatch] slurm/SCRIPT.sh [arguments of the script]
# shellcheck source=slurm/lib.sh
source "${PROJECT:-$PWD}/slurm/lib.sh" ||
  { echo "error: call this from the root of the project, or set PROJECT to it" >&2 && exit 2; }
unset SLURM_SUBMIT_DIR # set if this is called inside another job
SBATCH_OPTIONS=()
enter_project
exec sbatch "${SBATCH_OPTIONS[@]}" "$@"
