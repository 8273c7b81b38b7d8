#!/usr/bin/env bash
# One rank, started by srun (slurm/lib.sh): runs COMMAND and writes down when and how it ended, for tools/first_error.py.
#
#   rank.sh FOLDER COMMAND...
#
# --kill-on-bad-exit ends all others when one leaves with another code than 0. So a rank that has saved after a signal (75) leaves with 0; and 10 s are
# left to the others where rank 0 says the reason for all (2, 3, 4: engine/distributed/launch.py), and in a hang (5), where who reports nothing is to blame.
set -u
folder=$1
shift
node=${SLURMD_NODENAME:-$(hostname)}
echo "$node" >"$folder/rank-$SLURM_PROCID.node"
trap : TERM INT USR1
(
  trap '' USR1 # until the trainer has its handler: the default would end it in mid-import
  exec "$@"
)
code=$?
echo "$(date +%s.%N) $code $node" >"$folder/.rank-$SLURM_PROCID.exit"
mv "$folder/.rank-$SLURM_PROCID.exit" "$folder/rank-$SLURM_PROCID.exit"
[[ $code != [2345] ]] || sleep 10
exit $((code == 75 ? 0 : code))
