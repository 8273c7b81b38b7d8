"""Fine-tuning protocols and benchmarks."""

from engine import launch

launch.prepare_environment()  # every module below imports torch or DeepSpeed, which read the environment once
