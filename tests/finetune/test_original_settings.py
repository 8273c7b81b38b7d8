"""Defaults of the scripts are those of the original code's configuration of the task, typed from
the fact sheet; docs/guides/fine-tune.md claims it for these values."""

from __future__ import annotations

import pytest

from allinone.finetune.benchmarks import benchmark_names, load_benchmark

ORIGINAL = {
    # learning rate, items per step, epochs, learning rate of the head as a multiple
    "msrvtt_qa": (1e-4, 512, 20, 10),
    "msvd_qa": (1e-4, 512, 20, 10),
    "tgif_frameqa": (1e-4, 512, 20, 10),
    "tgif_action": (1e-4, 512, 100, 10),
    "tgif_transition": (1e-4, 512, 100, 10),
    "tvqa": (1e-4, 512, 100, 10),
    "msrvtt_choice": (1e-4, 256, 10, 1),
    "lsmdc_choice": (1e-5, 256, 20, 1),
    "ego4d_choice": (1e-4, 256, 10, 1),
    "vcr": (1e-4, 256, 200, 1),
    "msrvtt_retrieval": (3e-4, 1024, 200, 1),
    "msvd_retrieval": (1e-4, 256, 50, 1),
    "activitynet_retrieval": (3e-4, 1024, 200, 1),
    "didemo_retrieval": (6e-4, 1024, 200, 1),
    "lsmdc_retrieval": (1e-4, 1024, 50, 1),
    "k400_linear": (3e-4, 256, 50, 1),
    "hmdb51_linear": (1e-4, 256, 50, 1),
    "vqav2": (1e-4, 256, 10, 10),
    "coco_retrieval": (3e-4, 256, 50, 1),
    "flickr30k_retrieval": (1e-4, 256, 10, 1),
}
NOT_CONFIGURED = {
    "msrvtt_caption",
    "msvd_caption",
    "vatex_caption",
    "youcook2_caption",
    "ucf101_linear",
    "egomcq",
    "activitynet_qa",
    "nextqa",
    "vatex_retrieval",
    "youcook2_retrieval",
    "ssv2_linear",
    "ssv2_retrieval",
    "lsmdc_fib",
}
"""Without a configuration in the original code."""


def test_every_script_is_listed() -> None:
    assert set(benchmark_names()) == ORIGINAL.keys() | NOT_CONFIGURED


@pytest.mark.parametrize("name", ORIGINAL)
def test_defaults_are_those_of_the_original_configuration(name: str) -> None:
    config = load_benchmark(name).config
    train = config.train
    found = (train.lr, train.global_batch, config.epochs, config.head_lr_mult)
    assert found == ORIGINAL[name]
    assert (train.warmup, train.weight_decay) == (0.1, 0.01)
