"""Who is unresponsive during a hang."""

from __future__ import annotations

from allinone.engine.distributed.heartbeat import Heartbeat, describe_unresponsive_ranks


def test_unresponsive_and_deviating_ranks_are_named() -> None:
    def signs(counts: dict[int, int], **doing: str) -> dict[int, Heartbeat]:
        return {
            rank: Heartbeat(number, f"node{rank}", "7", doing.get(f"r{rank}", "step 9"))
            for rank, number in counts.items()
        }

    first = signs({0: 4, 1: 9, 2: 1})
    assert (
        "no sign of life from rank 1 on node1 (pid 7), last in step 9: "
        in describe_unresponsive_ranks(first, signs({0: 5, 1: 9, 2: 2}), 3)
    )
    assert "no sign of life from rank 2: " in describe_unresponsive_ranks(
        signs({0: 4, 1: 9}), signs({0: 5, 1: 10}), 3
    ), "one that never said anything"
    found = describe_unresponsive_ranks(
        first, signs({0: 5, 1: 10, 2: 2}, r2="the checkpoint of step 8"), 3
    )
    assert found == (
        "all ranks are alive, most of them in step 9; except rank 2 on node2 in the checkpoint of"
        " step 8"
    )
