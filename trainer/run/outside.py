"""What the process that starts ranks says in RUN, where rank 0 can not: that there are none.

It writes only while RUN is of its own start: config.json names it, and so does owner.json, or
nobody. A folder that this machine does not see is left alone.
"""

from __future__ import annotations

import logging
import time
import uuid

from trainer.base.mistake import Mistake
from trainer.base.run_files import SUMMARY_FILE
from trainer.files.json_files import write_json
from trainer.files.signs import RENEW_SECONDS
from trainer.run.folder import RunFolder
from trainer.run.lock import read_owner, write_owner

logger = logging.getLogger(__name__)


class Outside:
    """Of one start of a run."""

    def __init__(self, run: str, run_id: str) -> None:
        self._run, self._run_id = run, run_id
        self._token = uuid.uuid4().hex
        self._said_at = float("-inf")

    def waiting(self) -> None:
        """There is no room for ranks. To be told again and again: it is a sign of life."""
        if time.monotonic() - self._said_at < RENEW_SECONDS:
            return
        self._said_at = time.monotonic()
        try:
            folder = RunFolder(self._run)
            if self._is_ours(folder):
                write_owner(folder.path, self._run_id, self._token, "waiting", 0, None)
        except (Mistake, OSError) as error:
            logger.warning("%s: that it waits is not written: %s", self._run, error)

    def failed(self, cause: str) -> None:
        """The run does not go on."""
        try:
            folder = RunFolder(self._run)
            if not self._is_ours(folder):
                return
            steps = folder.last_metrics().get("step", 0)
            summary = {"steps": steps, "phase": "failed", "cause": cause}
            write_json(folder.path / SUMMARY_FILE, summary)
            # Ours, or that of a rank 0 which was killed: it would count as alive for a minute.
            (folder.path / "owner.json").unlink(missing_ok=True)
        except (Mistake, OSError) as error:
            logger.warning("%s: that it failed is not written: %s", self._run, error)

    def _is_ours(self, folder: RunFolder) -> bool:
        if not folder.config_file.is_file() or folder.read_config().run_id != self._run_id:
            return False
        owner = read_owner(folder.path)
        return owner is None or owner.run_id == self._run_id
