"""Package metadata. Extras: gpu (DALI decoding on NVDEC, CUDA wheels of torch come from the index
that you choose), test, dev."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "torch>=2.9,<2.14",
    "deepspeed==0.19.8",
    "megatron-core>=0.16.1,<0.17",
    "transformers>=5.20,<6",
    "nvidia-dali-cuda130>=2.4,<3",
    "tensorboard>=2.20,<3",
    "grain>=0.2.18,<0.3",
    "av>=18,<20",
    "pyarrow>=20",
    "numpy>=2.0",
    "pillow>=11",
    "matplotlib>=3.9",
    "safetensors>=0.5",
    "tyro>=1.0,<2",
    "psutil>=6",
    "msgspec>=0.19,<1",
    "rapidfuzz>=3.10,<4",
    "ftfy>=6.3,<7",
    "tqdm>=4.66",
]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "webdataset>=0.2.100",
    "torchmetrics>=1.6",
    "scikit-learn>=1.5",
]

setup(
    name="allinone-pretrain",
    version="0.1.0",
    description=(
        "All-in-one video-language pre-training: one transformer over raw video frames and words"
    ),
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["allinone*"]),
    package_data={
        "allinone": ["py.typed", "ds_configs/*"],
        "allinone.data": ["vocab/*"],
        "allinone.finetune.evaluation": ["paper_numbers.json"],
    },
    install_requires=REQUIRES,
    extras_require={
        "gpu": ["nvidia-dali-cuda130>=2.4,<3"],
        "test": TEST,
        "dev": [*TEST, "ruff>=0.14", "mypy>=1.18", "import-linter>=2.5", "py-spy", "build"],
    },
)
