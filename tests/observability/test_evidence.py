"""A bundle proves its records to someone who has nothing but a script and a public key, and a forged or hostile one proves nothing."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import FaultsFound, UserError
from observability import evidence, verify_evidence
from observability.chain import Entry, Record, canonical_bytes, entry_hash
from observability.evidence import make_bundle, prove
from observability.signing import SigningKeys, open_keys, public_keys, rotate

SAMPLE = runpy.run_path(str(Path(__file__).parent / "sample_case.py"))
make_sample, files_of, zip_of, resealed = (SAMPLE[name] for name in ("make_sample", "files_of", "zip_of", "resealed"))
FIRST_DAY = "2026-11-01T00:00:00.000000+00:00"
SCRIPT = Path(verify_evidence.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="module")
def keys(folder: Path) -> SigningKeys:
    keys = open_keys(folder / "signing.json", FIRST_DAY)
    (folder / "keys.json").write_bytes(public_keys(keys))
    return keys


@pytest.fixture(scope="module")
def sample(keys: SigningKeys):
    return make_sample(keys)


@pytest.fixture(scope="module")
def files(sample) -> dict[str, bytes]:
    return files_of(sample.bundle())


@pytest.fixture(scope="module")
def verdict(folder: Path, keys: SigningKeys) -> Callable[..., tuple[int, str]]:
    """Writes a bundle and runs the verifier on it, in this process: exit code and what it prints."""

    def run(bundle: bytes, *more: str, key: str | None = str(folder / "keys.json")) -> tuple[int, str]:
        path = folder / "bundle.zip"
        path.write_bytes(bundle)
        arguments = [str(path), *(["--key", key] if key else []), *more]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = verify_evidence.main(arguments)
        return code, said.getvalue()

    return run


def test_a_genuine_bundle_is_told_card_by_card(verdict, sample, keys):
    code, said = verdict(sample.bundle())
    assert code == 0
    assert said.splitlines() == [
        "case complaint 7 of tenant acme, made 2026-11-23T00:00:00.000000+00:00 by ann",
        "chosen by: run:research-42 grade<0.5",
        f"the bundle: {len(files_of(sample.bundle())) - 2} files listed, 3 signed roots, 9 ledger entries, 3 cards",
        "what graders.json says beyond name, version and hash is not covered by the ledger",
        "card card-1 (production, 2026-11-21T04:00:12+00:00, answered): as recorded; 2 grades, 1 review",
        "  entry 2, recorded 2026-11-21T04:00:01.000000+00:00, in the root of 4 signed 2026-11-22T00:00:04.000000+00:00",
        "  read by ann on 2026-11-21T05:00:00.000000+00:00 (entry 12)",
        "card card-2 (production, 2026-11-21T04:00:12+00:00, answered): as recorded; 1 erasure, 1 grade",
        "  entry 4, recorded 2026-11-21T04:00:03.000000+00:00, in the root of 4 signed 2026-11-22T00:00:04.000000+00:00",
        "  the words of card card-2: erased on 2026-11-21T04:00:09.000000+00:00 (entry 10); its facts and proofs stand",
        "  the words of grade 2: erased on 2026-11-21T04:00:09.000000+00:00 (entry 10); its facts and proofs stand",
        "card card-3 (production, 2026-11-21T04:00:12+00:00, answered): as recorded",
        "  entry 11, recorded 2026-11-21T04:00:10.000000+00:00, in the root of 13 signed 2026-11-22T00:00:13.000000+00:00",
        "GENUINE: every record is what was recorded, and stands in the signed ledger",
    ]
    assert verdict(sample.bundle(), key=keys.known[0].public)[0] == 0, "one key as hex digits"


def test_the_same_case_gives_the_same_bytes_whatever_the_order_of_its_records(sample):
    turned = sample._replace(records=sample.records[::-1])
    assert sample.bundle() == turned.bundle()


def test_an_unpacked_bundle_is_checked_by_the_script_that_it_brought_along(files, folder, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-I", "-S", "verify_evidence.py", ".", "--key", str(folder / "keys.json")]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    (tmp_path / "roots" / "000000000004.sig").unlink()
    ran = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert ran.returncode == 1 and "FAULT roots/000000000004.sig is listed in the manifest and missing" in ran.stdout


def test_the_bundles_own_key_proves_nothing(verdict, sample):
    code, said = verdict(sample.bundle(), key=None)
    assert code == 1 and said.splitlines()[-1].startswith("NOT PROVEN: it agrees with the key that it brought along")


def test_evidence_under_another_key_is_not_trusted(verdict, tmp_path):
    forger = open_keys(tmp_path / "forger.json", FIRST_DAY)
    code, said = verdict(make_sample(forger).bundle())
    assert code == 1 and f"the manifest is signed with key {forger.id}, which is not among the known ones" in said
    assert "NOT TO BE TRUSTED" in said


def test_a_key_that_was_replaced_vouches_for_its_own_time_only(verdict, tmp_path):
    old = open_keys(tmp_path / "signing.json", FIRST_DAY)
    early = rotate(tmp_path / "signing.json", "2026-11-10T00:00:00.000000+00:00")
    (tmp_path / "known.json").write_bytes(public_keys(early))
    code, said = verdict(make_sample(old).bundle(), key=str(tmp_path / "known.json"))
    assert code == 1 and "when its key was not in use (2026-11-01T00:00:00.000000+00:00 to 2026-11-10T00:00:00.000000+00:00)" in said
    late = open_keys(tmp_path / "signing.json", FIRST_DAY)
    assert verdict(make_sample(late).bundle(), key=str(tmp_path / "known.json"))[0] == 0


def test_what_no_signed_root_covers_is_refused_before_a_bundle_is_made(keys):
    sample = make_sample(keys, root_sizes=(4,))
    with pytest.raises(FaultsFound, match="entry 11: no signed root covers it yet"):
        sample.proofs()


def test_a_record_without_facts_makes_no_evidence(sample):
    lost = [Record(entry=sample.entries[0], facts=None)]
    with pytest.raises(ValueError, match="entry 1: card card-0 has no facts"):
        make_bundle(SAMPLE["CASE"], lost, prove([1], sample.roots, [one.hash for one in sample.entries]), [], [], sample.signer, b"")


def test_a_case_that_the_verifier_would_refuse_for_its_size_is_refused_before_it_is_made(sample, monkeypatch):
    assert evidence.MOST_FILES == verify_evidence.MOST_FILES
    monkeypatch.setattr(evidence, "MOST_FILES", 31)
    with pytest.raises(UserError, match="takes 36 files; a bundle has at most 31") as error:
        sample.bundle()
    assert error.value.cure == "narrow the case, or make several"


# --- forged --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_is_changed_the_bundle_is_not_trusted(data, files, folder, capsys):
    name = data.draw(st.sampled_from(sorted(files)))
    place, other = data.draw(st.integers(0, len(files[name]) - 1)), data.draw(st.integers(1, 255))
    bent = bytearray(files[name])
    bent[place] ^= other
    (folder / "bent.zip").write_bytes(zip_of(files | {name: bytes(bent)}))
    assert verify_evidence.main([str(folder / "bent.zip"), "--key", str(folder / "keys.json")]) == 1
    assert "GENUINE" not in capsys.readouterr().out


def with_json(files: dict[str, bytes], name: str, change: Callable[[dict], None], line: int | None = None) -> dict[str, bytes]:
    lines = files[name].splitlines() if line is not None else [files[name]]
    value = json.loads(lines[line or 0])
    change(value)
    lines[line or 0] = canonical_bytes(value)
    return files | {name: b"\n".join(lines)}


def edit_entry(line: int, rehash: bool, **values: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def change(entry: dict) -> None:
        entry |= values
        if rehash:
            entry["hash"] = entry_hash(msgspec.convert(entry, Entry))

    return lambda files: with_json(files, "ledger.jsonl", change, line)


def without(*names: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {name: content for name, content in files.items() if not name.startswith(names)}


def emptied(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: files | {name: b""}


CARD, GRADE, ERASURE = "records/000000000002", "records/000000000003", "records/000000000010"
FORGERIES = {
    "facts edited": (
        lambda files: with_json(files, f"{CARD}/facts.json", lambda facts: facts.update(ending="out_of_budget")),
        "entry 2: the facts of card card-1 were edited: they are not those that were recorded",
    ),
    "words edited": (
        lambda files: with_json(files, f"{CARD}/payload.json", lambda payload: payload.update(answer="13.5%")),
        "entry 2: the words of card card-1 were edited: they are not those that were recorded",
    ),
    "salt changed": (lambda files: files | {f"{CARD}/salt": bytes(16)}, "entry 2: the words of card card-1 were edited"),
    "words withheld": (
        without(f"{CARD}/payload", f"{CARD}/salt"),
        "entry 2: the words of card card-1 are missing, and no erasure of them is recorded",
    ),
    "erasure left out": (
        lambda files: (
            without(ERASURE)(files)
            | {"ledger.jsonl": b"\n".join(one for one in files["ledger.jsonl"].splitlines() if b'"erasure"' not in one)}
        ),
        "entry 4: the words of card card-2 are missing, and no erasure of them is recorded",
    ),
    "facts missing": (without(f"{CARD}/facts"), f"entry 2: {CARD}/facts.json is missing"),
    "entry edited": (edit_entry(0, False, at="x"), "entry 2: the ledger entry was edited: its content does not give its hash"),
    "entry rewritten": (edit_entry(0, True, at="x"), "entry 2: it is not proven that the entry stands in the signed ledger"),
    "entry of another tenant": (edit_entry(0, True, tenant="other"), "entry 2: the entry belongs to tenant other, not to the case's"),
    "link cut": (edit_entry(1, True, previous="0" * 64), "entry 3: the entry does not follow on entry 2"),
    "entry twice": (lambda files: files | {"ledger.jsonl": files["ledger.jsonl"] * 2}, "ledger.jsonl has two entries numbered 2"),
    "card left out": (
        lambda files: without(CARD)(files) | {"ledger.jsonl": b"\n".join(files["ledger.jsonl"].splitlines()[1:])},
        "entry 3: the grade belongs to no card of this bundle",
    ),
    "no inclusions": (emptied("inclusions.jsonl"), "entry 2: it is not proven that the entry stands in the signed ledger"),
    "no continuations": (
        emptied("continuations.jsonl"),
        "it is not proven that the root of 9 entries goes on with the root of 4: the ledger was written anew",
    ),
    "root changed": (
        lambda files: with_json(files, "roots/000000000004.json", lambda root: root.update(root="0" * 64)),
        "roots/000000000004.json: its signature is false",
    ),
    "root of another tenant": (
        lambda files: with_json(files, "roots/000000000004.json", lambda root: root.update(tenant="other")),
        "roots/000000000004.json is no root of this tenant's ledger",
    ),
    "manifest passed off as a root": (
        lambda files: files | {"roots/000000000004.json": files["manifest.json"], "roots/000000000004.sig": files["manifest.sig"]},
        "roots/000000000004.json",
    ),
    "another reader": (
        lambda files: with_json(files, "access.jsonl", lambda line: line.update(by="bob"), 0),
        "access.jsonl tells of an access by bob (entry 12) that was not recorded like that",
    ),
    "an access to a card of another case": (
        lambda files: with_json(files, "access.jsonl", lambda line: line.update(rollout_id="card-0"), 0),
        "access.jsonl tells of an access by ann (entry 12) that was not recorded like that",
    ),
    "another grader under the name": (
        lambda files: files | {"graders.json": canonical_bytes([{"name": "numeric", "version": "2", "hash": "0" * 16}])},
        "entry 3: graded by numeric@2 with hash a1b2c3d4e5f60718; the bundle describes one with another hash",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_who_could_sign_a_manifest_still_cannot_change_what_the_ledger_proves(forgery, files, keys, verdict):
    forge, words = FORGERIES[forgery]
    forged = forge(files)
    assert forged != files
    code, said = verdict(zip_of(resealed(forged, keys.sign)))
    assert code == 1 and f"FAULT {words}" in said, said


def test_a_file_that_the_manifest_does_not_list_is_named(files, verdict):
    code, said = verdict(zip_of(files | {"records/more.json": b"{}"}))
    assert code == 1 and "FAULT records/more.json is in the bundle, and the manifest does not list it" in said


def test_a_ledger_that_was_written_anew_and_signed_with_the_stolen_key_is_found_by_the_roots_kept_outside(sample, keys, folder, verdict):
    outside = folder / "roots.jsonl"
    foreign = msgspec.structs.replace(sample.roots[0], tenant="other", root="0" * 64)
    outside.write_bytes(b"\n".join(msgspec.json.encode(root) for root in [*sample.roots, foreign]) + b"\n")
    assert verdict(sample.bundle(), "--roots", str(outside))[0] == 0
    anew = make_sample(keys, erase=False)
    assert verdict(anew.bundle())[0] == 0, "the bundle alone cannot tell"
    code, said = verdict(anew.bundle(), "--roots", str(outside))
    assert code == 1 and f"FAULT {outside} has another root of 13 entries: the ledger was written anew" in said
    outside.write_bytes(msgspec.json.encode(sample.roots[0]) + b"\n")
    code, said = verdict(sample.bundle(), "--roots", str(outside))
    assert code == 1 and f"FAULT the root of 9 entries is not in {outside}" in said


# --- hostile -------------------------------------------------------------------------------------------------------------


def zip_with(folder: Path, name: str, content: bytes = b"x", mode: int = 0o644) -> bytes:
    with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as made:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        made.writestr(member, content, zipfile.ZIP_DEFLATED)
    return (folder / "made.zip").read_bytes()


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/etc/passwd", "a\\b", "C:x", "a//b", "./a", "a/.", "\x1b[2J", "a" * 300, "a\0b"]
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(name, tmp_path, verdict):
    bundle = zip_with(tmp_path, name.replace("\0", "?")).replace(b"a?b", b"a\0b")
    code, said = verdict(bundle)
    assert code == 1 and "REFUSED: a file has the name" in said and "\x1b" not in said
    assert [one.name for one in tmp_path.iterdir()] == ["made.zip"]


def test_links_and_doubles_and_ciphers_are_refused(tmp_path, files, verdict):
    assert "REFUSED: a is a link" in verdict(zip_with(tmp_path, "a", b"/etc/passwd", stat.S_IFLNK | 0o777))[1]
    locked = bytearray(zip_with(tmp_path, "a"))
    locked[locked.index(b"PK\1\2") + 8] |= 1
    assert "REFUSED: a is encrypted" in verdict(bytes(locked))[1]
    two = zip_of({"manifest.json": b"1", "manifest.jsoN": b"2"}).replace(b"manifest.jsoN", b"manifest.json")
    assert "REFUSED: manifest.json is there twice" in verdict(two)[1]


@pytest.mark.parametrize("bundle", [b"", b"PK", b"no zip at all" * 9, b"PK\5\6" + bytes(18), b"PK\5\6" + b"\xff" * 16 + b"\0\0"])
def test_what_is_no_bundle_is_refused(bundle, verdict):
    code, said = verdict(bundle)
    assert code == 1 and ("REFUSED" in said or "FAULT manifest.json is missing" in said)


def test_a_file_that_unpacks_to_far_more_than_it_is_stops_the_reading(files, keys, folder, monkeypatch, capsys):
    monkeypatch.setattr(verify_evidence, "MOST_BYTES", 1 << 20)
    bomb = zip_of(resealed(files | {"bomb": bytes(64 << 20)}, keys.sign))
    assert len(bomb) < 1 << 20
    (folder / "bomb.zip").write_bytes(bomb)
    assert verify_evidence.main([str(folder / "bomb.zip"), "--key", str(folder / "keys.json")]) == 1
    assert "the bundle holds more than 1 MiB" in capsys.readouterr().out


def test_too_many_files_are_refused(folder, monkeypatch, files, capsys):
    monkeypatch.setattr(verify_evidence, "MOST_FILES", 3)
    (folder / "many.zip").write_bytes(zip_of(files))
    assert verify_evidence.main([str(folder / "many.zip")]) == 1
    assert capsys.readouterr().out == "REFUSED: the bundle has more than 3 files\n"


HOSTILE_JSON = [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"9" * 100_000,
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b'{"a":1,"a":2}',
    b"",
    b"null",
    b'"x"',
    b"[[]]",
    b"{}",
]


@pytest.mark.parametrize("content", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
@pytest.mark.parametrize(
    "name", ["manifest.json", "ledger.jsonl", "inclusions.jsonl", "continuations.jsonl", "graders.json", "keys.json",
             "roots/000000000004.json", f"{CARD}/facts.json"],
)  # fmt: skip
def test_made_up_json_is_a_fault_and_never_a_stack_trace(name, content, files, keys, folder, capsys):
    forged = files | {name: content}
    if name == "manifest.json":
        forged["manifest.sig"] = keys.sign(content)
    else:
        forged = resealed(forged, keys.sign)
    (folder / "hostile.zip").write_bytes(zip_of(forged))
    holds = verify_evidence.main([str(folder / "hostile.zip"), "--key", str(folder / "keys.json")]) == 0
    assert holds == (name == "keys.json" or (name == "graders.json" and content == b"[]")), "keys beside the evidence are not read"
    assert verify_evidence.main([str(folder / "hostile.zip")]) == 1
    assert "cannot be read (" not in capsys.readouterr().out, "each is refused for what it is"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6), cut=st.integers(0, 40))
def test_a_mangled_zip_is_refused_or_still_the_same_evidence(changes, cut, sample, folder, capsys):
    mangled = bytearray(sample.bundle())
    for place, value in changes:
        mangled[-1 - place % len(mangled)] = value
    (folder / "mangled.zip").write_bytes(mangled[: len(mangled) - cut])
    code = verify_evidence.main([str(folder / "mangled.zip"), "--key", str(folder / "keys.json")])
    said = capsys.readouterr().out
    assert code == (0 if "GENUINE" in said else 1) and said.count("\n") >= 1
    if code == 0:
        with zipfile.ZipFile(folder / "mangled.zip") as opened:
            assert {one: opened.read(one) for one in opened.namelist()} == files_of(sample.bundle())


def test_a_folder_with_something_else_than_files_is_refused(tmp_path, capsys):
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert verify_evidence.main([str(tmp_path)]) == 1
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    assert verify_evidence.main([str(tmp_path)]) == 1
    assert verify_evidence.main([str(tmp_path / "pipe")]) == 1
    assert verify_evidence.main([str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and all(line.startswith("REFUSED: ") for line in said)


def test_a_key_file_that_is_none_is_refused(sample, verdict, tmp_path):
    (tmp_path / "key").write_text('[{"id":"0000000000000000","public":"' + "00" * 32 + '","from":"","until":null}]')
    assert "has another id" in verdict(sample.bundle(), key=str(tmp_path / "key"))[1]
    assert "REFUSED" in verdict(sample.bundle(), key=str(tmp_path / "nowhere"))[1]
    assert "REFUSED" in verdict(sample.bundle(), key="z" * 64)[1]


def test_words_of_the_bundle_do_nothing_to_a_terminal(keys, files, verdict):
    forged = with_json(files, "manifest.json", lambda manifest: manifest["case"].update(name="\x1b[2J\x1b[1;1HGENUINE\n" + "x" * 500))
    said = verdict(zip_of(resealed(forged, keys.sign)))[1]
    assert "\x1b" not in said and max(len(line) for line in said.splitlines()) < 400
    assert said.splitlines()[0].startswith("case ?[2J?[1;1HGENUINE?xxx")


def test_an_advantage_of_another_card_is_a_fault(keys, files, verdict):
    entry = json.loads(files["ledger.jsonl"].splitlines()[-1])
    facts = canonical_bytes({"tenant": entry["tenant"], "rollout_id": "card-77", "advantage": 1.0})
    forged = with_json(files, "ledger.jsonl", lambda one: one.update(kind="credit", facts=hashlib.sha256(facts).hexdigest()), line=-1)
    forged |= {f"records/{entry['seq']:012}/facts.json": facts}
    code, said = verdict(zip_of(resealed(forged, keys.sign)))
    assert code == 1 and "the credit belongs to no card of this bundle" in said


# --- alone ---------------------------------------------------------------------------------------------------------------


def test_the_script_needs_python_3_9_and_nothing_else():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 9))
    named = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert named <= sys.stdlib_module_names and "subprocess" not in named and "socket" not in named


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_steps_by_hand_that_the_documentation_gives_hold(files, keys, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    steps = text.split("```sh\n# by hand\n")[1].split("```")[0].replace("PUBLIC", keys.known[0].public).replace("SEQ", "000000000002")
    ran = subprocess.run(["bash", "-eu", "-c", steps], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    card = json.loads(files["ledger.jsonl"].splitlines()[0])
    assert ran.stdout.split() == [
        *["Signature", "Verified", "Successfully"] * 4, card["facts"], "-", card["payload"], "-", card["hash"], "-"
    ]  # fmt: skip
