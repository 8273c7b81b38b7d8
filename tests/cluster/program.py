"""Stands in for a script of finetune/: `program.py --exit CODE --out DIR` says on which node it runs and ends."""

import os
import sys

print(f"rank {os.environ['SLURM_PROCID']} of {os.environ['SLURM_STEP_NUM_TASKS']} on {os.environ['SLURMD_NODENAME']}", flush=True)
sys.exit(int(sys.argv[sys.argv.index("--exit") + 1]))
