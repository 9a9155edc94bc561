"""The bundle that answers now, and the change to another one.

Whoever works takes `current` once and keeps it: a change lets go of the old one after the last
answer that uses it. A new bundle is opened, checked and asked once before it takes the place; one
that cannot be is told of, and the old one stays.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from trainer.base.mistake import Mistake
from trainer.bundle.answers import recommend
from trainer.bundle.asked import Ask
from trainer.bundle.manifest import MANIFEST
from trainer.bundle.opened_bundle import Bundle

logger = logging.getLogger(__name__)
Identity = tuple[str, int, int, int]


class Shelf:
    """Opens the bundle at a place, and again whenever another one is there.

    Args:
        verify: compare all files' digests.
    """

    def __init__(self, place: str, verify: bool = False) -> None:
        self.place, self.verify = Path(place), verify
        self._looking = threading.Lock()
        self._seen = self._identity()
        self.current = self._opened()
        self.changes, self.failures = 0, 0

    def look(self) -> bool:
        """Change to the bundle that is there now, if it is another one; whether it was. From any
        thread; reads the disk."""
        with self._looking:
            found = self._identity()
            if found is None or found == self._seen:
                return False
            self._seen = found
            try:
                opened = self._opened()
            except (Mistake, OSError) as error:
                self.failures += 1
                logger.error("the new bundle is not used, the old one answers on: %s", error)
                return False
            self.current = opened
            self.changes += 1
            return True

    def _opened(self) -> Bundle:
        bundle = Bundle(self.place, self.verify)
        if bundle.manifest.users:
            recommend(bundle, Ask(user=str(bundle.user_names.id_of(0)), k=1))
        if bundle.program.can_encode:
            bundle.program.warm()
        return bundle

    def _identity(self) -> Identity | None:
        """What tells one bundle from another at this place; None: there is none (yet)."""
        try:
            manifest = (self.place / MANIFEST).resolve(strict=True)
            facts = manifest.stat()
        except (OSError, RuntimeError):
            return None
        return str(manifest), facts.st_ino, facts.st_mtime_ns, facts.st_size
