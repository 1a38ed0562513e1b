"""Every page by its address, and the scope that it takes."""

from __future__ import annotations

from litestar.handlers import HTTPRouteHandler

from observability.roots import LedgerFiles
from serving.gate import Gate
from serving.pages import approvals, cards, drift, inspecting, keeping, ledger, levels, people, releases, runs
from serving.pages.checks import Checks
from serving.pages.render import Desk, page_route, static_route
from serving.release.looking import Promises


def pages_routes(gate: Gate, files: LedgerFiles, promises: Promises | None = None) -> list[HTTPRouteHandler]:
    desk = Desk(gate, files, Checks(), promises or Promises())
    return [
        page_route(desk, "GET", "/", "read", cards.home),
        page_route(desk, "GET", "/cards", "read", cards.search),
        page_route(desk, "GET", "/cards/counts", "read", cards.counts),
        page_route(desk, "GET", "/cards/{rollout_id:str}", "read", cards.card),
        page_route(desk, "POST", "/cards/{rollout_id:str}/review", "review", people.review),
        page_route(desk, "POST", "/cards/{rollout_id:str}/seal", "approve", people.seal),
        page_route(desk, "GET", "/compare", "read", cards.compare),
        page_route(desk, "GET", "/inspect", "read", inspecting.runs),
        page_route(desk, "GET", "/inspect/{run_id:str}", "read", inspecting.inspect),
        page_route(desk, "POST", "/inspect/{run_id:str}/triage", "review", inspecting.triage),
        page_route(desk, "GET", "/queue", "review", people.review_queue),
        page_route(desk, "POST", "/queue/fill", "operate", people.fill_queue),
        page_route(desk, "GET", "/changes", "read", people.changes),
        page_route(desk, "POST", "/changes/settle", "review", people.settle),
        page_route(desk, "GET", "/views", "read", people.saved_views),
        page_route(desk, "POST", "/views", "review", people.save_view),
        page_route(desk, "POST", "/views/remove", "review", people.remove_view),
        page_route(desk, "GET", "/ledger", "read", ledger.status),
        page_route(desk, "POST", "/ledger/verify", "export", ledger.verify),
        page_route(desk, "POST", "/ledger/evidence", "export", ledger.evidence),
        page_route(desk, "GET", "/ledger/keys.json", "read", ledger.keys),
        page_route(desk, "GET", "/ledger/verify_evidence.py", "read", ledger.script),
        page_route(desk, "GET", "/holds", "read", keeping.held),
        page_route(desk, "GET", "/holds/plan", "operate", keeping.planned),
        page_route(desk, "POST", "/holds", "approve", keeping.place_hold),
        page_route(desk, "POST", "/holds/release", "approve", keeping.release_hold),
        page_route(desk, "GET", "/approvals", "approve", approvals.inbox),
        page_route(desk, "POST", "/approvals/{approval_id:str}", "approve", approvals.decide),
        page_route(desk, "GET", "/access", "approve", ledger.access_log),
        page_route(desk, "GET", "/runs", "read", runs.listed),
        page_route(desk, "GET", "/runs/{run_id:str}", "read", runs.shown),
        page_route(desk, "GET", "/releases", "read", releases.listed),
        page_route(desk, "GET", "/releases/{release_id:str}", "read", releases.shown),
        page_route(desk, "POST", "/releases/{release_id:str}/hold", "operate", releases.hold),
        page_route(desk, "POST", "/releases/{release_id:str}/resume", "operate", releases.resume),
        page_route(desk, "POST", "/releases/{release_id:str}/promote", "operate", releases.promote),
        page_route(desk, "POST", "/releases/{release_id:str}/approve", "approve", releases.approve),
        page_route(desk, "POST", "/releases/{release_id:str}/waive", "approve", releases.waive),
        page_route(desk, "POST", "/releases/{release_id:str}/rollback", "operate", releases.rollback),
        page_route(desk, "GET", "/drift", "read", drift.drift),
        page_route(desk, "GET", "/service-levels", "read", levels.service_levels),
        static_route(),
    ]
