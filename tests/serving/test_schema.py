"""Whatever fits the OpenAPI document, and much that does not, is answered: no route of the whole app fails with a 500."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from litestar import Litestar
from schemathesis.generation import GenerationMode

from agent_rft.commands.serve import label_desk_of
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.numeric import NumericGrader
from observability import users
from observability.access import person_at_the_machine
from observability.intake import Intake
from observability.redaction.detectors import detectors_of
from observability.store import migrate, open_store
from serving.app import create_app
from serving.gateway.app import Gateway, GatewayPlan
from serving.gateway.upstreams import UpstreamSpec
from serving.gateway.writing import Plan
from serving.release.routing import Routing
from serving.tools.corpus import CorpusTools

BEARER = "secret"
EXAMPLES = 4
HEALTH = list(HealthCheck)


class Served(NamedTuple):
    app: Litestar
    key: str


@pytest.fixture(scope="module")
def served(postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """On PostgreSQL, which refuses more than SQLite does: a NUL, a number that is too long."""
    migrate(url := postgres())
    store = open_store(url)
    me, now = person_at_the_machine("acme", "root"), dt.datetime.now(dt.UTC)
    users.add_user(store, me, "ann", "admin", now)
    key = users.new_key(store, me, "ann", now).text
    intake = Intake(store, detectors_of(True))
    grader, folder = NumericGrader(), tmp_path_factory.mktemp("gateway")
    upstream = UpstreamSpec(name="none", url="http://127.0.0.1:1/v1", model="m", checkpoint="w")
    cards = Plan(
        store=store.address, folder=f"{folder}/spool", most_bytes=10**7, redact=True, patterns={}, tenant_patterns={}, code="", collector=""
    )
    gateway = Gateway(GatewayPlan(upstreams=(upstream,), cards=cards), store, Routing(store, folder))
    app = create_app(
        CorpusTools({"a": "b"}, TOOLS), {grader.ref.name: grader}, BEARER, desk_of=label_desk_of, store=store, intake=intake,
        ledger_folder=str(tmp_path_factory.mktemp("ledger")), gateway=gateway,
    )  # fmt: skip
    yield Served(app, key)
    gateway.close()
    intake.close()
    store.close()


def test_no_route_fails_whatever_it_is_sent(served: Served) -> None:
    """The training-time routes ask for the server's bearer, the store's for a user's key. All that fails is told at once."""
    document = schemathesis.openapi.from_asgi("/schema/openapi.json", served.app)
    document.config.generation.update(with_security_parameters=False)  # each request has its key: what is behind the gate is tried
    operations = [found.ok() for found in document.get_all_operations()]
    failed = [fault for operation in operations for mode in GenerationMode if (fault := probed(operation, mode, served.key))]
    assert len(operations) > 40 and not failed, "\n".join(failed)


def probed(operation: Any, mode: GenerationMode, key: str) -> str | None:
    @settings(max_examples=EXAMPLES, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=HEALTH)
    @given(case=operation.as_strategy(generation_mode=mode))
    def probe(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {key}"})
        if answer.status_code == 401:
            answer = case.call(headers={"authorization": f"Bearer {BEARER}"})
        assert answer.status_code != 401 and (answer.status_code < 500 or answer.status_code == 503), f"{answer.status_code} {answer.text}"
        told.append(answer.status_code)

    told: list[int] = []
    try:
        probe()
    except Unsatisfiable:
        return None  # of a route that takes anything nothing is wrong
    except AssertionError as error:
        return f"{operation.label}: {error}"
    return None if told else f"{operation.label}: nothing was sent"
