"""Fine-tuning protocols and benchmarks."""
