"""Examples that tasks make of items, and the contrastive loss over them."""

from __future__ import annotations

import torch

from allinone.data.loading.sampling import generator
from allinone.engine.distributed.contrastive import contrast
from allinone.finetune.annotations.schema import ChoiceItem, Media, RetrievalItem
from allinone.finetune.tasks.multiple_choice import ChoiceExamples
from allinone.finetune.tasks.options import ChoiceOptions
from allinone.finetune.tasks.retrieval import other_captions


def test_options_are_shuffled_in_training_only() -> None:
    items = [ChoiceItem("q", Media("m", "m"), "", ("a", "b", "c", "d", "e"), 0)]
    make = ChoiceExamples(items, ChoiceOptions())
    plain = make(0, None)
    assert [text[0].text for text in plain.texts] == ["a", "b", "c", "d", "e"]
    assert plain.target == 0
    seen = set()
    for epoch in range(40):
        drawn = make(0, generator(0, "x", epoch, 0))
        assert isinstance(drawn.target, int)
        assert drawn.texts[drawn.target][0].text == "a"
        seen.add(drawn.target)
    assert seen == {0, 1, 2, 3, 4}


def test_false_captions_belong_to_other_clips() -> None:
    items = [
        RetrievalItem(str(n), Media(str(n), str(n)), (f"caption {n}", "the same for all"))
        for n in range(5)
    ]
    drawn = [
        text for n in range(200) for text in other_captions(items, 2, 3, generator(0, "x", n, 0))
    ]
    assert set(drawn) == {"caption 0", "caption 1", "caption 3", "caption 4"}


def test_captions_of_one_clip_are_not_negatives() -> None:
    text, video = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    groups = torch.tensor([0, 1, 1, 2])
    found = contrast(text, video, torch.tensor(20.0), groups)
    logits = 20 * text @ video.T
    allowed = [[0, 1, 2, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]]
    for row, columns in enumerate(allowed):
        to_video = logits[row, row] - logits[row, columns].logsumexp(0)
        to_text = logits[row, row] - logits[columns, row].logsumexp(0)
        torch.testing.assert_close(found.losses[row], -(to_video + to_text) / 2)
