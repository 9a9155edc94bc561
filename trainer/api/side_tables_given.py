"""The catalog and the users of a bundle as tables."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from trainer.bundle.opened_bundle import Bundle


def side_table(bundle: Bundle, side: Literal["item", "user"]) -> pa.Table:
    """`item` or `user` (its row), `raw_id`, `title` of items, `count`, `known`, `embedding`."""
    of_items = side == "item"
    names = bundle.item_names if of_items else bundle.user_names
    vectors = bundle.items if of_items else bundle.users
    assert vectors is not None, "a run's bundle has its users' vectors"
    flat = pa.array(vectors.at(slice(0, len(vectors))).reshape(-1))
    columns = {side: pa.array(np.arange(len(names))), "raw_id": names.raw_id}
    if names.title is not None:
        columns["title"] = names.title
    columns["count"] = pa.array(bundle.count_I if of_items else bundle.user_count_U)
    columns["known"] = pa.array(bundle.known_I if of_items else bundle.user_known_U)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, bundle.manifest.width)
    return pa.table(columns)
