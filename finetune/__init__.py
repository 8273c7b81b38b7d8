"""Fine-tuning protocols and benchmarks."""

from allinone.engine.distributed import launch

# every module below imports torch or DeepSpeed, which read the environment once
launch.prepare_environment()
