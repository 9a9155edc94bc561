"""What a run's config.json says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trainer.base.mistake import Mistake
from trainer.base.typed import Range
from trainer.config.sections import Config
from trainer.run.origin import Origin

STORES = ("file", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hdfs", "memory")
"""Storage that a run's config may send its reader to."""


@dataclass(frozen=True)
class RunFacts:
    """What config.json says."""

    run_id: str
    preset: str
    data: str
    dataset_digest: str
    world_size: Annotated[int, Range(least=1)]
    versions: dict[str, str]
    config: Config
    start_from: Origin | None = None
    """Where its first values came from, if from another run's."""

    @property
    def named_data(self) -> str:
        """The dataset's place, where it may be read without being named again.

        Raises:
            Mistake: for a URI of another kind than object stores: whoever wrote the file would
                have this machine ask any server for anything.
        """
        scheme, there, _ = self.data.partition("://")
        if (there and scheme not in STORES) or "::" in self.data:
            raise Mistake(
                f"the run's config.json names data at {self.data!r}, which is not followed "
                f"(folders and {', '.join(STORES)} are): name the data yourself by --data"
            )
        return self.data
