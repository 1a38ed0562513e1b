"""Verifications of ledgers that people start from the page: in a thread of their own, with their progress."""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass, field

import structlog

from agent_rft.contracts.errors import UserError
from observability import ledger, roots
from observability.chain import Finding
from observability.roots import LedgerFiles
from observability.store import Store

SHOWN = 50
"""Findings that are listed."""
log = structlog.get_logger("serving.pages")


@dataclass
class Check:
    """One verification of a tenant's ledger, under way or over. This server process remembers the last of each tenant."""

    by: str
    started_at: dt.datetime
    entries: int
    read: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    found: int = 0
    faults: list[str] = field(default_factory=list[str])
    """Of the signed roots outside the store."""
    trouble: str = ""
    """Why it could not be finished."""
    ended_at: dt.datetime | None = None

    @property
    def holds(self) -> bool:
        return self.ended_at is not None and not (self.found or self.faults or self.trouble)


class Checks:
    """One at a time for a tenant, and one at a time in all: each reads a whole ledger."""

    def __init__(self) -> None:
        self._newest: dict[str, Check] = {}
        self._busy = threading.Lock()

    def newest(self, tenant: str) -> Check | None:
        return self._newest.get(tenant)

    def start(self, store: Store, files: LedgerFiles, tenant: str, by: str, now: dt.datetime) -> None:
        if not self._busy.acquire(blocking=False):
            running = self._newest.get(tenant)
            if running and running.ended_at is None:
                return
            raise UserError("another ledger is being verified", "try again in a minute")
        try:
            check = self._newest[tenant] = Check(by, now, ledger.size(store.of(tenant), tenant))
            threading.Thread(target=self._run, args=(store, files, tenant, check), daemon=True).start()
        except BaseException:
            self._busy.release()
            raise

    def _run(self, store: Store, files: LedgerFiles, tenant: str, check: Check) -> None:
        def step(entries: int) -> None:
            check.read += entries

        try:
            trusted, faults = roots.trusted(files)
            own = [root for root in trusted if root.tenant == tenant]
            check.faults = [*roots.lost_roots(store, files.roots, tenant), *(one for one in faults if f"the root of {tenant} over " in one)]
            for finding in ledger.verify(store, tenant, own, step):
                check.found += 1
                if check.found <= SHOWN:
                    check.findings.append(finding)
        except UserError as error:
            check.trouble = error.what
        except Exception as error:
            check.trouble = "the store failed while it was read; the server's log says why"
            log.error("verification_failed", tenant=tenant, exc_info=error)
        finally:
            check.ended_at = dt.datetime.now(dt.UTC)
            self._busy.release()
