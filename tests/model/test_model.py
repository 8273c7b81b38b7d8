"""Sizes, cost, rolling, frames, saving and errors of the model."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from allinone.model import (
    SIZES,
    AllInOneConfig,
    AllInOneForPreTraining,
    AllInOneModel,
    flops,
    norm,
    parameters_by_part,
)
from allinone.model.convert import (
    CONTRASTIVE,
    DISTILLATION,
    TEMPORAL,
    ConversionError,
    convert_reference,
    from_reference,
    load_resized,
    reference_name,
)
from allinone.model.roll import roll_channels, roll_tokens

PARITY = Path(__file__).parents[1] / "parity"


def nano(**overrides: object) -> AllInOneForPreTraining:
    torch.manual_seed(0)
    return AllInOneForPreTraining(
        AllInOneConfig.from_size("nano", **{"vocab_size": 50, **overrides})
    )


def inputs(
    clips: int = 2, frames: int = 3, size: int = 64, words: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(clips, words, dtype=torch.long)
    mask[0, words // 2 :] = 0
    return (
        torch.randn(clips, frames, 3, size, size, generator=generator),
        torch.randint(1, 50, (clips, words), generator=generator) * mask,
        mask,
    )


# Counted on the original code. Its S also holds a temporal embedding of 3 x 384 that it never adds;
# this model does not have it.
UNTRAINED = 3 * 384
PARTS = {
    "tiny": (5_868_672, 384, 147_648 + 38_592, 5_338_368, 384, 37_056, 5_928_186, 386),
    "small": (
        11_737_344,
        768,
        295_296 + 77_952 - UNTRAINED,
        21_293_568,
        768,
        147_840,
        11_899_578,
        770,
    ),
    "base": (23_474_688, 1_536, 590_592 + 154_368, 85_054_464, 1_536, 590_592, 24_063_546, 1_538),
}


@pytest.mark.parametrize("size", PARTS)
def test_parameters_of_each_part_equal_the_original(size: str) -> None:
    with torch.device("meta"):
        counts = parameters_by_part(AllInOneForPreTraining(AllInOneConfig.from_size(size)))
    names = (
        "text embeddings",
        "modality table",
        "video embeddings",
        "blocks",
        "final norm",
        "pooler",
        "MLM head",
        "VTM head",
    )
    assert tuple(counts[name] for name in names) == PARTS[size]
    total = sum(counts[name] for name in names[:6])
    original = {"tiny": 11_431_104, "small": 33_553_536 - UNTRAINED, "base": 109_867_776}
    assert total == original[size]
    pretraining = {"tiny": 17_359_676, "small": 45_453_884 - UNTRAINED, "base": 133_932_860}
    assert total + counts["MLM head"] + counts["VTM head"] == pretraining[size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_analytic_flops_equal_the_counter(size: str, frames: int) -> None:
    with torch.device("meta"):
        config = AllInOneConfig.from_size(size, num_frames=frames)
        model = AllInOneForPreTraining(config).eval()
        words, side = config.max_text_len, config.image_size
        pixels = torch.zeros(1, frames, 3, side, side)
        ids = torch.zeros(1, words, dtype=torch.long)
        calls = {
            "joint": lambda: model(pixels, ids, torch.ones_like(ids)),
            "video": lambda: model.encode_video(pixels),
            "text": lambda: model.encode_text(ids, torch.ones_like(ids)),
        }
        for part, call in calls.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            expected = flops.forward_flops(config, frames=frames, text_tokens=words, part=part)
            assert counter.get_total_flops() == expected, part
        hidden = torch.zeros(7, config.hidden_size)
        for head, count in (
            (model.mlm_head, flops.mlm_flops(config, 7)),
            (model.vtm_head, flops.vtm_flops(config, 7)),
            (model.text_projection, flops.projection_flops(config, 7)),
        ):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                head(hidden)
            assert counter.get_total_flops() == count


def test_base_costs_what_the_paper_prints() -> None:
    config = AllInOneConfig.from_size("base")
    assert flops.forward_flops(config, frames=3, text_tokens=40) / 1e9 == pytest.approx(
        127.68, abs=0.01
    )
    small = AllInOneConfig.from_size("small")  # 198 visual tokens
    assert flops.forward_flops(small, frames=3, text_tokens=40) / 1e9 == pytest.approx(
        33.80, abs=0.005
    )
    macs = flops.forward_flops(config, frames=3, text_tokens=32, attention_products=False) / 2
    assert macs / 1e9 == pytest.approx(58.70, abs=0.01)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_roll_moves_the_slots_that_the_paper_names(frames: int) -> None:
    words, visual, fold = 4, 17, 2
    x = torch.arange(2 * frames * (words + visual), dtype=torch.float).reshape(
        2 * frames, words + visual, 1
    )
    rolled = roll_tokens(x, frames, words, fold)
    for clip in range(2):
        for frame in range(frames):
            for slot in range(words + visual):
                v = slot - words
                source = frame - 1 if 1 <= v <= fold else frame + 1 if v >= visual - fold else frame
                assert (
                    rolled[clip * frames + frame, slot] == x[clip * frames + source % frames, slot]
                )


def test_as_many_rolls_as_frames_bring_every_token_home() -> None:
    x = torch.randn(6, 21, 5)
    y = x
    for _ in range(3):
        y = roll_tokens(y, 3, 4, 2)
    assert torch.equal(x, y)


def test_channel_shift_moves_the_outer_channels_of_patches_only() -> None:
    x = torch.randn(3, 6, 16)
    y = roll_channels(x, 3, 2, 2)
    assert torch.equal(y[:, :3], x[:, :3])
    assert torch.equal(y[1, 3:, :2], x[0, 3:, :2])
    assert torch.equal(y[2, 3:, -2:], x[0, 3:, -2:])
    assert torch.equal(y[:, 3:, 2:-2], x[:, 3:, 2:-2])


@pytest.mark.parametrize("roll", ["roll", "average", "flatten", "channel"])
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("distilled", [False, True])
def test_every_variant_takes_any_number_of_frames(roll: str, frames: int, distilled: bool) -> None:
    output = nano(roll=roll, distillation_token=distilled).eval()(*inputs(frames=frames))
    assert output.text.shape == (2, 8, 128)
    assert output.video.shape == (2, 18 if distilled else 17, 128)
    assert output.pooled.shape == (2, 128)


def test_frames_talk_to_each_other_except_in_average() -> None:
    """The features of frame 0 change with frame 1 where frames exchange information, and do not
    where they only meet in the mean."""
    pixels, ids, mask = inputs()
    changed = pixels.clone()
    changed[:, 1] += 1
    for roll, expected in (("roll", True), ("channel", True), ("average", False)):
        model, seen = nano(roll=roll).eval(), []
        model.backbone.encoder.norm.register_forward_hook(
            lambda _, __, y, seen=seen: seen.append(y[0])
        )
        with torch.no_grad():
            model(pixels, ids, mask)
            model(changed, ids, mask)
        assert (not torch.allclose(*seen, atol=1e-6)) == expected, roll


def test_padding_words_change_nothing() -> None:
    pixels, ids, mask = inputs()
    model = nano().eval()
    with torch.no_grad():
        short = model(pixels[:1], ids[:1, :4], mask[:1, :4])
        long = model(pixels[:1], ids[:1], mask[:1])
    torch.testing.assert_close(short.text, long.text[:, :4], atol=1e-5, rtol=1e-5)


def test_shuffled_order_is_fixed_in_eval_and_varies_in_training() -> None:
    model = nano(patch_order="shuffled", hidden_dropout=0.0, drop_path=0.0)
    batch = inputs()
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(*batch).pooled, model(*batch).pooled)
        model.train()
        assert not torch.equal(model(*batch).pooled, model(*batch).pooled)


def test_an_explicit_order_puts_patch_order_k_into_slot_k() -> None:
    embeddings = nano().eval().backbone.video_embeddings
    order = torch.stack([torch.randperm(16) for _ in range(6)])
    plain, ordered = embeddings(inputs()[0]), embeddings(inputs()[0], order)
    for row in range(6):
        assert torch.equal(ordered[row, 1:], plain[row, 1 + order[row]])


def test_checkpointing_gives_equal_gradients_with_dropout() -> None:
    gradients = []
    for enable in (False, True):
        model = nano().train()
        if enable:
            model.gradient_checkpointing_enable()
        torch.manual_seed(7)
        model(*inputs()).pooled.square().sum().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("roll", "distilled"),
    [("roll", False), ("roll", True), ("flatten", False), ("channel", False), ("average", False)],
)
def test_compiles_without_graph_breaks(roll: str, distilled: bool) -> None:
    model = nano(roll=roll, distillation_token=distilled).eval()
    compiled = torch.compile(model.backbone, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(*inputs()).pooled, model.backbone(*inputs()).pooled, atol=1e-5, rtol=1e-5
        )


def test_save_and_load_is_bit_equal_and_works_with_auto_classes(tmp_path: Path) -> None:
    model = nano().eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert isinstance(loaded, AllInOneForPreTraining)
    assert isinstance(AutoModel.from_pretrained(tmp_path), AllInOneModel)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["roll"] == "roll"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def reference_shapes(size: str) -> dict[str, torch.Tensor]:
    rows = (
        line.split("\t")
        for line in (PARITY / f"state_dict_{size}.tsv").read_text().splitlines()
        if line
    )
    return {key: torch.randn([int(n) for n in shape.split(",")]) for key, shape in rows}


@pytest.mark.parametrize("size", PARTS)
def test_weights_of_the_original_load_with_no_key_left_over(size: str) -> None:
    state = reference_shapes(size)
    model, report = convert_reference(state, AllInOneConfig.from_size(size))
    assert not report.resized
    assert torch.equal(
        model.backbone.encoder.blocks[11].mlp.fc2.bias, state["transformer.blocks.11.mlp.fc2.bias"]
    )
    assert torch.equal(model.backbone.video_embeddings.position, state["transformer.pos_embed"])
    own = {name: value.clone() for name, value in model.state_dict().items()}
    kept = {reference_name(key): value for key, value in state.items() if reference_name(key)}
    if size == "small":
        del kept[TEMPORAL]
        assert DISTILLATION in kept
    assert all(torch.equal(own[str(name)], value) for name, value in kept.items())
    assert {name for name in own.keys() - kept.keys() if not name.startswith(CONTRASTIVE)} == set()


def test_conversion_errors_list_what_is_wrong() -> None:
    state = reference_shapes("tiny")
    del state["pooler.dense.bias"]
    state["surplus"] = torch.zeros(1)
    state["transformer.norm.weight"] = torch.zeros(5)
    with pytest.raises(ConversionError) as caught:
        from_reference(state, AllInOneConfig.from_size("tiny"))
    assert caught.value.missing == ["backbone.pooler.dense.bias"]
    assert caught.value.unexpected == ["surplus"]
    assert caught.value.misshaped == ["backbone.encoder.norm.weight [5] instead of [192]"]


def test_co_trained_names_and_an_absent_temporal_embedding_load() -> None:
    state = {
        key.replace("itm_score", "vtm_score"): value
        for key, value in reference_shapes("tiny").items()
    }
    del state["transformer.temporal_embed"]
    model, report = convert_reference(state, AllInOneConfig.from_size("tiny"))
    assert not model.backbone.video_embeddings.temporal.any()
    assert torch.equal(model.vtm_head.weight, state["vtm_score.fc.weight"])
    assert any("temporal" in line for line in report.initialised)


def test_resolution_frames_and_text_length_resize_is_reported() -> None:
    state = reference_shapes("tiny")
    config = AllInOneConfig.from_size("tiny", image_size=384, num_frames=8, max_text_len=80)
    model, report = convert_reference(state, config)
    assert len(report.resized) == 3
    video = model.backbone.video_embeddings
    assert torch.equal(video.position[0, 0], state["transformer.pos_embed"][0, 0])
    assert torch.allclose(
        video.temporal[0, [0, -1]], state["transformer.temporal_embed"][0, [0, -1]]
    )
    text, learned = (
        model.backbone.text_embeddings.position.weight,
        state["text_embeddings.position_embeddings.weight"],
    )
    assert torch.equal(text[:40], learned)
    assert torch.equal(text[40:], learned[-1:].expand(40, -1))
    short, _ = convert_reference(state, AllInOneConfig.from_size("tiny", max_text_len=20))
    expected = state["text_embeddings.position_embeddings.weight"][:20]
    assert torch.equal(short.backbone.text_embeddings.position.weight, expected)


@torch.no_grad()
def test_longer_text_limit_keeps_the_output_for_short_texts(tmp_path: Path) -> None:
    model = nano(max_text_len=8).eval()
    model.save_pretrained(tmp_path)
    longer, _ = load_resized(
        tmp_path, AllInOneConfig.from_size("nano", vocab_size=50, max_text_len=40)
    )
    pixels, ids, mask = inputs()
    padded = nn.functional.pad(ids, (0, 32)), nn.functional.pad(mask, (0, 32))
    assert torch.allclose(
        longer.eval()(pixels, *padded).pooled, model(pixels, ids, mask).pooled, atol=1e-5
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 60}, "multiple of patch_size"),
        ({"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ({"roll": "none"}, "roll, average, flatten, channel"),
        ({"patch_order": "random"}, "raster, shuffled"),
        ({"hidden_dropout": 1.5}, "probability"),
        ({"width": 3}, "valid options: hidden_size"),
    ],
)
def test_wrong_options_are_refused_with_the_valid_ones(
    overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AllInOneConfig.from_size("nano", **overrides)


def test_unknown_sizes_and_wrong_shapes_name_what_is_valid() -> None:
    with pytest.raises(ValueError, match="nano, tiny, small, base, large, huge"):
        AllInOneConfig.from_size("giant")
    model = nano()
    pixels, ids, mask = inputs()
    with pytest.raises(ValueError, match="num_frames=5"):
        model(torch.zeros(1, 5, 3, 64, 64), ids[:1], mask[:1])
    with pytest.raises(ValueError, match="image_size"):
        model(torch.zeros(1, 3, 3, 32, 32), ids[:1], mask[:1])
    with pytest.raises(ValueError, match="max_text_len"):
        model(pixels, torch.zeros(2, 17, dtype=torch.long), torch.ones(2, 17))
    with pytest.raises(ValueError, match="patch_order"):
        model(pixels, ids, mask, patch_order=torch.zeros(2, 16, dtype=torch.long))


def test_only_nvidias_apex_is_taken_for_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fused(nn.LayerNorm):
        pass

    def install(**optimizers: object) -> None:
        norm._fused_layer_norm.cache_clear()
        modules = {
            "apex": {},
            "apex.optimizers": optimizers,
            "apex.normalization": {"FusedLayerNorm": Fused},
        }
        for name, content in modules.items():
            module = types.ModuleType(name)
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name, module)

    install()
    assert norm._fused_layer_norm() is None
    install(FusedAdam=object)
    assert norm._fused_layer_norm() is Fused
    norm._fused_layer_norm.cache_clear()


def test_image_heads_copy_video_heads_or_are_dropped(
    tmp_path: Path,
) -> None:
    shared = AllInOneForPreTraining(AllInOneConfig.from_size("nano"))
    shared.save_pretrained(tmp_path / "shared")
    own, report = load_resized(
        tmp_path / "shared", AllInOneConfig.from_size("nano", image_heads=True)
    )
    assert torch.equal(own.image_vtm_head.weight, shared.vtm_head.weight)
    assert torch.equal(own.image_mlm_head.decoder.weight, shared.mlm_head.decoder.weight)
    assert "a copy of vtm_head.weight" in str(report)
    assert own.heads(1) == (own.image_mlm_head, own.image_vtm_head)
    assert own.heads(3) == (own.mlm_head, own.vtm_head)
    own.save_pretrained(tmp_path / "own")
    back, report = load_resized(tmp_path / "own", AllInOneConfig.from_size("nano"))
    assert torch.equal(back.vtm_head.weight, shared.vtm_head.weight)
    assert "image_vtm_head.weight: the model has no heads of its own" in str(report)
