#!/usr/bin/env bash
# TensorBoard of a run, on a node of the cluster. Its log shows the ssh command that opens it on
# your own machine.
#
#   sbatch slurm/tensorboard.sh RUN_FOLDER
#   bash slurm/tensorboard.sh RUN_FOLDER       on a machine where it may keep running
#
# TensorBoard has no password, so it listens on the node's loopback only and the tunnel ends on that
# node. If ssh to nodes is not allowed, TENSORBOARD_HOST=0.0.0.0 makes it listen on the cluster's
# network, where everyone can reach it. PORT sets the port, LOGIN the host that you log in to; the
# site file may set both.
#SBATCH --job-name=tensorboard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=8:00:00
#SBATCH --output=%x-%j.log
# shellcheck source=slurm/lib.sh
source "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/lib.sh" ||
  { echo "error: submit from the root of the project, or set PROJECT to it" >&2 && exit 2; }
enter_project

[[ -d ${1:-} ]] ||
  fail "$EXIT_USAGE" "give a run's folder, for example runs/webvid-howto; got ${1:-nothing}"
node=${SLURMD_NODENAME:-$(hostname)}
host=${TENSORBOARD_HOST:-127.0.0.1}
require_numbers SLURM_JOB_ID
port=${PORT:-$((10000 + (${SLURM_JOB_ID:-$$} % 200) * 100 + 99))}
login=${LOGIN:-${SLURM_SUBMIT_HOST:-LOGIN_HOST}}

echo "on your own machine:"
if [[ $host == 127.0.0.1 ]]; then
  echo "  ssh -N -J $USER@$login -L $port:127.0.0.1:$port $USER@$node"
else
  echo "  ssh -N -L $port:$node:$port $USER@$login"
fi
echo "then open http://localhost:$port"
exec_single "$PYTHON" -m tensorboard.main --logdir "$1" --host "$host" --port "$port"
