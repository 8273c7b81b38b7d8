"""One process at a time makes the shards of a part, and no two parts share a shard."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator

from allinone.common.errors import ConfigError, DataError, LocalConfigError
from allinone.common.run_lock import LOCK, claim
from allinone.data.prepare.options import PrepareOptions

_NAME = re.compile(r"part-(\d+)-of-(\d+)")


def share_shards(part: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two parts i of n have shards in common.

    Part i of n has the shards i - 1, i - 1 + n, ...: two such series meet if and only if their
    first numbers are equal modulo the greatest common divisor of their steps.
    """
    return (part[0] - other[0]) % math.gcd(part[1], other[1]) == 0


@contextlib.contextmanager
def claim_part(options: PrepareOptions) -> Iterator[None]:
    """Hold the locks of this part of a folder; without parts and for --merge, of all of it.

    Args:
        options: Resolved options; the folder exists.

    Raises:
        DataError: Another process works on some of its shards.
    """
    folder = options.out / "locks"
    part = (1, 1) if options.part is None or options.merge else options.part
    own = folder / f"part-{part[0]}-of-{part[1]}"
    try:
        with claim(own):
            # after claiming: of two that start together, at least one sees the other
            for path in sorted(folder.glob(f"part-*/{LOCK}")):
                match = _NAME.fullmatch(path.parent.name)
                if match is None or path.parent == own:
                    continue
                if share_shards(part, (int(match[1]), int(match[2]))):
                    claim(path.parent).release()
            yield
    except LocalConfigError:
        raise
    except ConfigError as error:
        if not str(error).startswith(str(folder)):
            raise
        raise DataError(f"{options.out} is being prepared: {error}") from error
    # only empty folders: those of other parts hold their locks
    for path in [own, folder / "listing", folder]:
        with contextlib.suppress(OSError):
            path.rmdir()
