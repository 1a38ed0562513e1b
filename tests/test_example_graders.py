"""The example graders: every type and every error flag, each case with what was worked out by hand in its `why`.

Each goes through `rft grade` and through OpenAI's run endpoint, both with a judge, an endpoint and an embeddings server that
really listen.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from agent_rft.cli import main
from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders import spec as specs
from agent_rft.graders.registry import Judges, Services, build_grader
from agent_rft.graders.samples import sample_of_text
from agent_rft.graders.sandbox import Sandbox
from agent_rft.graders.scripted_judge import read_script
from agent_rft.graders.spec import TYPES, flags_of, read_spec
from serving.app import create_app
from serving.judge import running_judge
from serving.openai_graders import ErrorFlags
from serving.tools.corpus import CorpusTools
from serving.tools.embeddings import EndpointEmbedder

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = EXAMPLES / "graders"
GRADERS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
REFUSED = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "refused").glob("*.json"))}
UNSERVED = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "unserved").glob("*.json"))}
RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
LISTENS = "http://127.0.0.1:8601"
"""Where `rft judge` answers; here it takes any free port."""


def cases_of(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.cases.jsonl").read_text().splitlines()]


def flags_set(errors):
    return {flag for flag, value in errors.items() if value not in (False, None)}


# --- what graders wait for --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def letter_counts():
    """An OpenAI-compatible embeddings server whose vectors count letters."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
            rows = [{"index": at, "embedding": [text.count(letter) for letter in "acehmnost"]} for at, text in enumerate(texts)]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": rows}).encode())

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


class Embed:
    model = "letters"

    def __init__(self, url):
        self._embedder = EndpointEmbedder(url, self.model)

    def __call__(self, texts):
        return np.asarray(self._embedder.embed(texts)).tolist()


@pytest.fixture(scope="module")
def judge():
    with running_judge(read_script((EXAMPLES / "judges" / "figures.json").read_text())) as url:
        yield url


@pytest.fixture(scope="module")
def embeddings():
    with letter_counts() as url:
        yield url


@pytest.fixture(scope="module")
def sandbox():
    """Why code cannot be run here; empty where it can."""
    try:
        Sandbox(workers=1).close()
    except UserError as error:
        return error.what
    return ""


@pytest.fixture
def example(request, sandbox):
    if sandbox and any(f'"type": "{kind}"' in json.dumps(GRADERS[request.param]) for kind in ("python", "code_run")):
        pytest.skip(f"no sandbox here: {sandbox}")
    return request.param


every_example = pytest.mark.parametrize("example", GRADERS, indirect=True)

# --- rft grade --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rft(judge, embeddings, tmp_path):
    """`rft grade` in this process, with every service and a store of its own."""
    stop = signal.getsignal(signal.SIGTERM)
    services = [f"grader.judge.url={judge}", f"grader.embeddings.url={embeddings}", f"store.url=sqlite:///{tmp_path}/cards.db"]
    yield lambda grader, cases: main(["grade", "--grader", str(grader), "--cases", str(cases), *services])
    signal.signal(signal.SIGTERM, stop)


@every_example
def test_rft_grade_gives_each_case_what_was_worked_out(rft, judge, tmp_path, capsys, example):
    file = tmp_path / f"{example}.json"
    file.write_text((FOLDER / f"{example}.json").read_text().replace(LISTENS, judge.removesuffix("/v1")))
    assert rft(file, FOLDER / f"{example}.cases.jsonl") == 0
    said, expected = capsys.readouterr(), cases_of(example)
    assert said.err == f"{len(expected)} of {len(expected)} cases as worked out\n" and len(expected) >= 2
    for line, case in zip(map(json.loads, said.out.splitlines()), expected, strict=True):
        assert set(line) == {"reward", "parts", "grader"} | ({"errors"} if "errors" in case else set())
        assert line["reward"] == (None if "errors" in case else pytest.approx(case["reward"], abs=1e-6)), case["why"]
        assert sorted(line.get("errors", {})) == sorted(case.get("errors", []))


def test_a_case_that_is_not_graded_as_worked_out_is_told_and_exits_with_1(rft, tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    cases.write_text((FOLDER / "schema.cases.jsonl").read_text().replace('"reward": 1', '"reward": 0.5'))
    assert rft(FOLDER / "schema.json", cases) == 1
    assert f"1 of 5 cases are not graded as worked out:\n  {cases}:1: wanted 0.5, got 1.0" in capsys.readouterr().err


def test_a_line_of_cases_ends_where_json_lines_end(rft, tmp_path, capsys):
    """U+2028 and its like may stand in a JSON text as they are, and other ends of lines are white space."""
    text = "one\u2028two\u0085three"
    cases = [{"item": {"reference_answer": text}, "sample": {"output_text": text}, "reward": 1}] * 2
    (tmp_path / "cases.jsonl").write_bytes("\r\n".join(json.dumps(case, ensure_ascii=False) for case in cases).encode())
    assert rft(FOLDER / "string_check.json", tmp_path / "cases.jsonl") == 0
    assert capsys.readouterr().err == "2 of 2 cases as worked out\n"


@pytest.mark.parametrize("example", ["multi_judged", "schema"])
def test_the_command_itself_does_so_in_a_process_of_its_own(judge, example):
    asked = ["--grader", f"{FOLDER}/{example}.json", "--cases", f"{FOLDER}/{example}.cases.jsonl", f"grader.judge.url={judge}"]
    ended = subprocess.run([sys.executable, "-m", "agent_rft", "grade", *asked], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, f"{len(cases_of(example))} of {len(cases_of(example))} cases as worked out\n")


FIGURES = """\
{"item": {"reference_answer": "$842M"}, "sample": {"output_text": "$842 million"}, "reward": 1, "why": "the same figure"}
{"item": {"reference_answer": "$842M"}, "sample": {"output_text": "$850M"}, "reward": %s, "why": "8 off; 2%% of 842 is 16.84"}
"""


def test_a_grader_is_named_as_one_of_ours_a_registered_version_or_a_file(rft, tmp_path, capsys):
    strict, lenient, file = tmp_path / "strict.jsonl", tmp_path / "lenient.jsonl", tmp_path / "mine.json"
    strict.write_text(FIGURES % "0")
    lenient.write_text(FIGURES % "0.5")
    file.write_text('{"type": "numeric", "name": "numeric", "tolerance": 0.02}')
    assert main(["grader", "register", str(file), "--by", "ann", "--set", f"store.url=sqlite:///{tmp_path}/cards.db"]) == 0
    for named, cases in (("numeric", strict), ("numeric@1", strict), ("numeric@2", lenient), (file, lenient)):
        assert rft(named, cases) == 0, named
    capsys.readouterr()
    assert rft("numeric@2", lenient) == 0
    assert [json.loads(line)["grader"]["version"] for line in capsys.readouterr().out.splitlines()] == ["2", "2"]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("numeric@9", "no grader version numeric@9 is registered in "),
        ("mine@", "'mine@' names no grader version"),
        ("nmeric", "did you mean 'numeric'?"),
        ("none.json", "cannot read none.json"),
    ],
)
def test_a_grader_that_nobody_registered_is_one_clear_error(rft, capsys, named, says):
    assert rft(named, FOLDER / "numeric.cases.jsonl") == 2
    assert says in capsys.readouterr().err


# --- OpenAI's run endpoint --------------------------------------------------------------------------------------------


def server_of(in_thread, **options):
    return in_thread(create_app(CorpusTools({"a": "b"}, TOOLS), {}, "secret", **options))


@pytest.fixture(scope="module")
def ask(in_thread, post, judge, embeddings):
    """One POST to a server that has all that graders wait for, and may call their endpoints."""
    with closing(Services(Judges(judge), Embed(embeddings))) as services:
        with server_of(in_thread, build=lambda spec: build_grader(spec, services)) as url:
            yield lambda path, body: post(url + path, body, "secret")


def samples_of(sample, grader):
    """The sample, and where a text alone says as much to this grader, that text."""
    yield sample
    text = sample.get("output_text")
    if (
        "output_tools" not in json.dumps(grader)
        and isinstance(text, str)
        and all(sample_of_text(text).get(key, "absent") == value for key, value in sample.items())
    ):
        yield text


def assert_documented(told, grader):
    """Every published key with its published type, and ours beside them: error_details."""
    metadata = told["metadata"]
    assert set(told) == {"reward", "sub_rewards", "metadata", "model_grader_token_usage_per_model"}
    assert set(metadata) == {
        "name", "type", "errors", "execution_time", "scores", "token_usage", "sampled_model_name", "error_details",
    }  # fmt: skip
    assert (metadata["name"], metadata["type"]) == (grader.get("name", grader["type"]), grader["type"])
    assert isinstance(metadata["execution_time"], float) and isinstance(metadata["scores"], dict)
    assert set(metadata["errors"]) == set(ErrorFlags.__struct_fields__)
    for flag, value in metadata["errors"].items():
        assert isinstance(value, str | None if flag.endswith(("_details", "_type")) else bool), flag
    usage = told["model_grader_token_usage_per_model"]
    assert all(set(used) == {"prompt_tokens", "total_tokens", "completion_tokens", "cached_tokens"} for used in usage.values())
    assert metadata["token_usage"] == (sum(used["total_tokens"] for used in usage.values()) if usage else None)
    assert metadata["sampled_model_name"] == (next(iter(usage)) if len(usage) == 1 else None)


@every_example
def test_the_run_endpoint_answers_each_case_in_the_documented_shape(ask, judge, example):
    grader = json.loads(json.dumps(GRADERS[example]).replace(LISTENS, judge.removesuffix("/v1")))
    assert ask(VALIDATE, {"grader": grader}) == (200, {"grader": grader})
    for case in cases_of(example):
        for sample in samples_of(case["sample"], grader):
            status, told = ask(RUN, {"grader": grader, "item": case["item"], "model_sample": sample})
            assert status == 200
            assert_documented(told, grader)
            wanted = case.get("errors", [])
            assert told["reward"] == (None if wanted else pytest.approx(case["reward"], abs=1e-6)), case["why"]
            assert sorted(told["metadata"]["error_details"]) == sorted(wanted), case["why"]
            assert flags_set(told["metadata"]["errors"]) == {flag.rpartition(".")[2] for flag in wanted}
            if grader["type"] == "multi":
                assert set(told["sub_rewards"]) == set(read_spec(grader).graders)


def test_texts_alone_reach_most_of_the_examples():
    both = [len(list(samples_of(case["sample"], grader))) == 2 for name, grader in GRADERS.items() for case in cases_of(name)]
    assert sum(both) > len(both) / 2


def test_openais_own_client_reads_each_answer(ask):
    """Its model of the answer, read strictly: only `reward` may be null where OpenAI's is not."""
    shape = pytest.importorskip("openai.types.fine_tuning.alpha").GraderRunResponse
    for name in ("string_check", "multi", "multi_judged", "score_model", "label_model"):
        for case in cases_of(name):
            told = ask(RUN, {"grader": GRADERS[name], "item": case["item"], "model_sample": case["sample"]})[1]
            read = shape.model_validate({**told, "reward": told["reward"] if "errors" not in case else 0.0}, strict=True)
            assert read.metadata.token_usage == told["metadata"]["token_usage"]


# --- graders that are none, and servers that lack what a grader needs ----------------------------------------------------


@pytest.mark.parametrize("refused", REFUSED)
def test_what_cannot_be_read_is_refused_with_every_fault_under_its_path(ask, rft, capsys, refused):
    grader, faults = REFUSED[refused]["grader"], REFUSED[refused]["faults"]
    with pytest.raises(FaultsFound) as caught:
        read_spec(grader)
    assert sorted(fault.where for fault in caught.value.faults) == sorted(faults)
    assert rft(FOLDER / "refused" / f"{refused}.json", FOLDER / "numeric.cases.jsonl") == 1
    shown = capsys.readouterr().err
    assert all(f".json{fault.removeprefix('grader')}: " in shown for fault in faults)
    status, told = ask(VALIDATE, {"grader": grader})
    assert (status, set(told), set(told["error"])) == (400, {"error"}, {"message", "type", "param", "code"})
    assert all(f"  {fault}: " in told["error"]["message"] for fault in faults) and told["error"]["param"] in faults
    assert (told["error"]["type"], told["error"]["code"]) == ("invalid_request_error", "invalid_grader")


@pytest.mark.parametrize("refused", REFUSED)
def test_what_fits_the_published_schema_runs_and_fails_with_its_flag(ask, refused):
    grader, flags = REFUSED[refused]["grader"], REFUSED[refused].get("flags")
    status, told = ask(RUN, {"grader": grader, "model_sample": "x"})
    if flags is None:
        assert (status, told["error"]["code"]) == (400, "invalid_grader")
        return
    assert (status, told["reward"], flags_set(told["metadata"]["errors"])) == (200, None, set(flags))
    with pytest.raises(FaultsFound) as caught:
        read_spec(grader)
    assert list(flags_of(caught.value)) == flags


@pytest.fixture(scope="module")
def bare(in_thread, post):
    """A server without judge, embeddings and sandbox."""
    with server_of(in_thread) as url:
        yield lambda path, body: post(url + path, body, "secret")


@pytest.mark.parametrize("unserved", UNSERVED)
def test_what_a_server_was_not_given_is_a_flag_that_says_what_to_configure(bare, unserved):
    grader, flags = UNSERVED[unserved]["grader"], UNSERVED[unserved]["flags"]
    assert bare(VALIDATE, {"grader": grader}) == (200, {"grader": grader})
    status, told = bare(RUN, {"grader": grader, "model_sample": "x"})
    assert (status, told["reward"], flags_set(told["metadata"]["errors"])) == (200, None, set(flags))
    assert_documented(told, grader)
    assert UNSERVED[unserved]["needs"] in told["metadata"]["error_details"][flags[0]]


@pytest.mark.parametrize("unserved", [name for name in UNSERVED if name != "endpoint"])
def test_rft_grade_refuses_what_this_machine_lacks_and_says_what_to_do(monkeypatch, tmp_path, capsys, unserved):
    monkeypatch.setenv("PATH", str(tmp_path))  # where no bwrap is
    file = FOLDER / "unserved" / f"{unserved}.json"
    assert main(["grade", "--grader", str(file), "--cases", f"{FOLDER}/{unserved}.cases.jsonl"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "\n  cure: " in said.err and "Traceback" not in said.err


# --- nothing is left out ------------------------------------------------------------------------------------------------


def test_every_type_of_grader_has_an_example():
    assert (
        {grader["type"] for grader in GRADERS.values()}
        == set(TYPES)
        == {str(kind.__struct_config__.tag) for kind in get_args(specs.GraderSpec)}
    )


@pytest.mark.parametrize(
    ("kind", "key", "known"), [("text_similarity", "evaluation_metric", specs.Metric), ("string_check", "operation", specs.Operation)]
)
def test_every_measure_and_comparison_has_an_example(kind, key, known):
    examples = {getattr(read_spec(grader), key) for grader in GRADERS.values() if grader["type"] == kind}
    assert set(get_args(known)) <= examples


def test_every_error_flag_has_an_example():
    cases = {flag.rpartition(".")[2] for name in GRADERS for case in cases_of(name) for flag in case.get("errors", [])}
    others = {flag for each in (*REFUSED.values(), *UNSERVED.values()) for flag in each.get("flags", [])}
    assert cases | others == set(ErrorFlags.__struct_fields__)


def test_every_case_says_what_it_should_get_and_why():
    for name in GRADERS:
        for case in cases_of(name):
            assert ("reward" in case) != ("errors" in case) and case["why"], name
