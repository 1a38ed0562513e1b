"""A reviewer asks what is missing, a trainer's spool is sent by hand, and the evidence says what is not known to be complete."""

from __future__ import annotations

import datetime as dt
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.remote import card_line
from observability.sources import Said
from observability.spool import Spool
from observability.store import open_store

ROOT = Path(__file__).resolve().parents[1]
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
ToyServer = runpy.run_path(str(ROOT / "tests/observability/test_remote.py"))["ToyServer"]
NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
WHOLE = "desk: 2 came of the 2 it announced (2026-"
HOLEY = "run seven: 4 came of the 9 it announced; number 2,4-5 never came; nor the last 2"


def recorded(source, number):
    return RecordedCard(make_card(f"{source}-{number}", tenant="default"), NOON, source=source, number=number)


@pytest.fixture
def store(tmp_path):
    """One source of which everything came; one that lost the second, fourth, fifth, and after the seventh two."""
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    insert_cards(store, [recorded("desk", number) for number in (1, 2)], [Said(tenant="default", source="desk", announced=2)])
    said = Said(tenant="default", source="run seven", announced=9)
    insert_cards(store, [recorded("run seven", number) for number in (1, 3, 6, 7)], [said])
    yield store
    store.close()


def test_sources_with_gaps_are_listed_and_the_complete_ones_counted(store, rft):
    code, told = rft("card", "sources")
    assert code == 0 and told.startswith("tenant default: 2 sources, 1 of them known to be complete\n")
    assert HOLEY in told and WHOLE not in told
    assert WHOLE in rft("card", "sources", "--all")[1]


def test_verify_tells_of_gaps_beside_its_verdict_and_does_not_call_them_tampering(store, rft):
    code, told = rft("ledger", "verify")
    assert code == 0 and "all as recorded" in told
    assert f"not everything came: source {HOLEY}" in told and WHOLE not in told


def test_evidence_discloses_what_is_not_known_to_be_complete(store, rft, tmp_path):
    bundle, keys = tmp_path / "case.zip", tmp_path / "public.json"
    assert rft("ledger", "evidence", "kind:eval", "--case", "seven", "--by", "R", "--out", str(bundle))[0] == 0
    keys.write_text(rft("ledger", "keys")[1])
    with zipfile.ZipFile(bundle) as files:
        capture = {one["name"]: one for one in json.loads(files.read("capture.json"))}
    assert capture["desk"]["complete"] is True and capture["run seven"]["missing"] == "2,4-5"
    script = ROOT / "observability" / "verify_evidence.py"
    checked = subprocess.run([sys.executable, str(script), str(bundle), "--key", str(keys)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and "GENUINE" in checked.stdout
    assert "1 of 2 sources of this tenant are known to be complete; that is its maker's word, and in no ledger" in checked.stdout
    assert f"  source {HOLEY}" in checked.stdout


def test_a_spool_is_sent_by_hand_and_its_gap_closes(store, rft, tmp_path, monkeypatch):
    Spool(tmp_path / "spool", 10**6).keep([card_line(recorded("run seven", number)) for number in (2, 4, 5, 8, 9)])
    monkeypatch.setenv("RFT_KEY", "the-key")
    with ToyServer(store, tenant="default") as server:
        code, told = rft("card", "send", str(tmp_path / "spool"), "--to", server.url)
    assert (code, told) == (0, f"5 records of {tmp_path}/spool are at {server.url} now; 0 were refused and set aside\n")
    assert rft("card", "sources")[1] == "tenant default: 2 sources, 2 of them known to be complete\n"


def test_what_hinders_sending_is_told(store, rft, tmp_path, monkeypatch):
    code, told = rft("card", "send", str(tmp_path), "--to", "http://127.0.0.1:9")
    assert code == 2 and f"{tmp_path} is no spool" in told
    Spool(tmp_path / "spool", 10**6)
    monkeypatch.delenv("RFT_KEY", raising=False)
    code, told = rft("card", "send", str(tmp_path / "spool"), "--to", "http://127.0.0.1:9")
    assert code == 2 and "http://127.0.0.1:9 is a card server, and RFT_KEY is not set" in told


def test_a_line_of_the_spool_is_the_card_whatever_text_is_in_it():
    odd = RecordedCard(make_card("odd", reference_answer={"a": 2**70, "b": 0.1, "c": "x\0y\u2028"}), NOON, source="s", number=3)
    assert msgspec.json.decode(card_line(odd), type=RecordedCard) == odd
    torn = msgspec.structs.replace(odd, card=make_card("odd", reference_answer="a\ud800b"))
    assert msgspec.json.decode(card_line(torn), type=RecordedCard).card.reference_answer == "a\ufffdb"
