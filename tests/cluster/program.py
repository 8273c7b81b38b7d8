"""Replaces a script of finetune/: `program.py --exit CODE --out DIR` prints its rank, node and
arguments, and exits with CODE."""

import os
import sys

print(
    f"rank {os.environ['SLURM_PROCID']} on {os.environ['SLURMD_NODENAME']}",
    *sys.argv[1:],
    sep="\n",
    flush=True,
)
sys.exit(int(sys.argv[sys.argv.index("--exit") + 1]))
