#!/usr/bin/env bash
# One rank, started by srun (slurm/lib.sh): runs COMMAND and records when and how it ended, for
# tools/first_error.py.
#
#   rank.sh FOLDER COMMAND...
#
# --kill-on-bad-exit ends all ranks when one exits with another code than 0. So a rank that has
# saved after a signal (REQUEUE, 75) exits with 0. The other ranks get 10 s to report after USAGE
# (2), DISK_FULL (3) and NON_FINITE (4), where rank 0 reports for all ranks, and after HANG (5),
# where the rank that does not report is the one that hangs. Codes: allinone/common/exit_codes.py.
set -u
folder=$1
shift
node=${SLURMD_NODENAME:-$(hostname)}
echo "$node" >"$folder/rank-$SLURM_PROCID.node"
trap : TERM INT USR1
(
  trap '' USR1 # until the trainer installs its handler: the default action kills it mid-import
  exec "$@"
)
code=$?
# written to another name first, so that first_error.py never reads a partial file
echo "$(date +%s.%N) $code $node" >"$folder/.rank-$SLURM_PROCID.exit"
mv "$folder/.rank-$SLURM_PROCID.exit" "$folder/rank-$SLURM_PROCID.exit"
[[ $code != [2345] ]] || sleep 10
exit $((code == 75 ? 0 : code))
