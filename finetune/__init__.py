"""Fine-tuning protocols and benchmarks."""

from allinone.engine.distributed import launch

launch.prepare_environment()  # every module below imports torch or DeepSpeed, which read the environment once
