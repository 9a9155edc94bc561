"""What comes before the first import of torchrec, in every command and in Python."""

from __future__ import annotations

from trainer.observe.progress import quiet_libraries
from trainer.tools.doctor import check_versions


def ready_for_torch(verbose: bool = False) -> None:
    """Libraries quiet, versions that belong together. Raises Mistake where they do not."""
    quiet_libraries(verbose)
    check_versions()
