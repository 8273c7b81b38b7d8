"""Configs of the models in the parity files."""

from __future__ import annotations

from allinone.model import AllInOneConfig


def config_of(facts: dict[str, int], **options: object) -> AllInOneConfig:
    """The config of a golden file from its description."""
    return AllInOneConfig(
        hidden_size=facts["hidden_size"],
        num_attention_heads=facts["num_heads"],
        num_hidden_layers=facts["num_layers"],
        mlp_ratio=facts["mlp_ratio"],
        image_size=facts["image_size"],
        patch_size=facts["patch_size"],
        num_frames=facts["num_frames"],
        vocab_size=facts["vocab_size"],
        max_text_len=facts["max_text_len"],
        projection_dim=facts["shared_embedding_dim"],
        roll_divisor=facts["roll_div"],
        **options,
    )
