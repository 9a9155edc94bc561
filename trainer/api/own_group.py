"""The process group of the models in memory: of this process alone, made with the first of them."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.distributed.ranks import Ranks

_GROUP = ExitStack()


@cache
def own_ranks() -> Ranks:
    """This process' place, in a group that lasts as long as the process."""
    from trainer.distributed.ranks import process_group

    return _GROUP.enter_context(process_group())


def end_group() -> None:
    """Leave the group, once no model needs it."""
    _GROUP.close()
    own_ranks.cache_clear()
