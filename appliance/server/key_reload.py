"""Reads the keys again while the server runs: when their file changes, every minute from AWS, and when told to."""

from __future__ import annotations

import asyncio
import logging
import os

from appliance.keys.errors import KeysError
from appliance.keys.key_store import KeyStore
from appliance.server.audit import Audit

log = logging.getLogger(__name__)


class KeyReload:
    def __init__(self, store: KeyStore, audit: Audit) -> None:
        self._store = store
        self._audit = audit
        self._asked = asyncio.Event()
        self._complaint = ""  # said already

    def ask(self) -> None:
        """Read them now, whether they seem to have changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """For ever. Keys with a mistake in them change nothing: those that were read before stay valid."""
        while True:
            try:
                # not wait_for: in Python 3.11 it forgets that it was cancelled when the wait ends just then
                async with asyncio.timeout(self._store.seconds):
                    await self._asked.wait()
            except TimeoutError:
                pass
            asked = self._asked.is_set()
            self._asked.clear()
            await self._read(asked)

    async def _read(self, asked: bool) -> None:
        try:
            change = await asyncio.to_thread(self._store.refresh, force=asked)
        except KeysError as error:
            if asked or str(error) != self._complaint:
                log.error("%s The keys that were read before stay as they are.", error)
                self._audit.note("keys_not_read", outcome="failed", reason=str(error), process=os.getpid())
            self._complaint = str(error)
            return
        if self._complaint or change or asked:
            count = len(self._store.ring.records)
            log.info("API keys were read again from %s: %d", self._store.place, count)
        self._complaint = ""
        if change:
            self._audit.note(
                "keys_changed",
                outcome="done",
                added=change.added,
                removed=change.removed,
                changed=change.changed,
                process=os.getpid(),
            )
