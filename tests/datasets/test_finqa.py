"""FinQA's JSON as an agentic task: the report in a corpus, the prompt without it, ten calls to find it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.events import AskModel
from agent_rft.contracts.rollouts import Ending, Limits
from agent_rft.datasets.finqa import CALL_BUDGET, TOOLS, adapt, read_finqa
from agent_rft.datasets.finqa_files import write_finqa
from agent_rft.datasets.rows_io import read_rows, validate_files
from agent_rft.datasets.versions import Origin
from agent_rft.graders.numeric import NumericGrader
from agent_rft.rollouts.driver import Try, collect
from agent_rft.rollouts.in_process import InProcessTools, ScriptedSampler
from serving.tools.corpus import CorpusTools

SAMPLE = Path(__file__).parents[2] / "data" / "finqa_sample"
FILES = {"train": SAMPLE / "train.json", "val": SAMPLE / "dev.json"}
ORIGIN = Origin(name="finqa", source="sample", made_by="rft data finqa")


def entry(**changes: object) -> dict:
    qa = {"question": "what grew?", "answer": "6.2%", "program": "divide(1, 2)", "exe_ans": 0.062} | changes.pop("qa", {})
    base = {
        "filename": "AB/2020/page_1.pdf",
        "id": "AB/2020/page_1.pdf-1",
        "pre_text": ["a & b ."],
        "post_text": ["."],
        "table": [["x", "1"]],
        "qa": qa,
    }
    return {key: held for key, held in {**base, **changes}.items() if held is not ...}


def read(*entries: object, indent: int | None = None):
    return read_finqa(json.dumps(list(entries), indent=indent), "f.json")


def faults_of(*entries: object, indent: int | None = None) -> list[str]:
    with pytest.raises(FaultsFound) as caught:
        read(*entries, indent=indent)
    return [str(fault) for fault in caught.value.faults]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("finqa")
    write_finqa(FILES, made, ORIGIN)
    return made


def test_the_sample_becomes_rows_without_a_fault(folder):
    report = validate_files({split: folder / f"{split}.jsonl" for split in FILES}, [tool.name for tool in TOOLS], NumericGrader())
    assert report.faults == ()
    assert report.sizes == {"train": 5, "val": 3}  # of 6 and 3; one of the six is answered yes
    assert len(list((folder / "reports").rglob("*.html"))) == 4  # nine questions, four pages


def test_the_report_is_in_the_corpus_and_not_in_the_prompt(folder):
    (row,) = [row for row in read_rows(folder / "train.jsonl") if row.id == "NVK/2021/page_12.pdf-1"]
    assert row.prompt == "by what percentage did northvale kilns' net sales of pottery ovens grow from 2020 to 2021?"
    assert row.opening()[0].content == row.prompt
    assert row.expected.evidence_path == "reports/NVK/2021/page_12.html"
    assert row.reference_answer == "6.2%"
    assert row.item()["finqa"] == {"answer": "6.2%", "exe_ans": 0.06186, "program": "subtract(412, 388), divide(#0, 388)"}
    page = (folder / "reports/NVK/2021/page_12.html").read_text()
    assert "<tr><td>pottery ovens</td><td>$ 412</td><td>$ 388</td></tr>" in page
    assert page.index("makes ovens") < page.index("<table>") < page.index("put off their orders")


async def test_a_rollout_solves_a_question_through_the_tools_within_the_budget(folder):
    """Every call and the answer hang on what the tools really said: the path comes from search, the figures from read."""
    (row,) = [row for row in read_rows(folder / "train.jsonl") if row.id == "TRWY/2019/page_48.pdf-1"]  # operating margin, 112 / 640
    tools = CorpusTools.from_folder(folder / "reports", TOOLS, max_output_tokens=2048)

    def speak(ask: AskModel) -> str:
        heard = ask.conversation[-1].content
        if ask.turn == 0:
            return call("search", query="tarroway ferries 2019 operating revenue operating income")
        if ask.turn == 1:
            return call("list", prefix=heard.split("/page")[0])
        if ask.turn == 2:
            return call("read", path=heard.split("\n")[0])
        figures = {line.split(": ")[0]: line.split(": ")[1] for line in heard.split("\n") if ": " in line}
        return f"{100 * float(figures['operating income']) / float(figures['operating revenue']):.1f}%"

    limits = Limits(max_tool_calls=CALL_BUDGET)
    (graded,) = await collect([Try(row, 0, 1)], ScriptedSampler(speak), InProcessTools(tools), NumericGrader(), limits)
    assert graded.rollout.ending is Ending.ANSWERED
    assert (graded.rollout.answer, graded.reward, graded.rollout.tool_calls) == ("17.5%", 1.0, 3)


async def test_the_eleventh_call_is_one_too_many(folder):
    row = read_rows(folder / "train.jsonl")[0]
    tools = InProcessTools(CorpusTools.from_folder(folder / "reports", TOOLS))
    sampler = ScriptedSampler(lambda ask: call("search", query="ovens"))
    (graded,) = await collect([Try(row, 0, 1)], sampler, tools, NumericGrader(), Limits(max_turns=99, max_tool_calls=CALL_BUDGET))
    assert CALL_BUDGET == 10
    assert (graded.rollout.ending, graded.rollout.tool_calls) == (Ending.OUT_OF_BUDGET, 10)


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("answer", "result", "reference"),
    [
        ("6.2%", 0.06186, "6.2%"),
        ("93.5%", 93.5, "93.5%"),
        ("$ 3.8 million", 3.8, "$ 3.8 million"),
        ("$ 3.8 million", 3800000.0, "$ 3.8 million"),
        ("8,100", 8100.0, "8,100"),
        ("380", 3.8, 3.8),  # the text is off by a factor: the program was checked, the text was not
        ("94", 0.94, 0.94),  # no percent sign, so no percent
        ("", 245.0, 245.0),
        (None, 245.0, 245.0),
        ("about two", 2.0, 2.0),
        ("0", 0, "0"),
        ("yes", "yes", "yes"),
        ("the first", "no", "no"),
    ],
)
def test_the_reference_is_the_published_answer_where_it_is_the_programs_result(answer, result, reference):
    (made,) = read(entry(qa={"answer": answer, "exe_ans": result}))
    assert made.row.reference_answer == reference


def test_every_fault_is_told_at_once_with_its_line():
    # json.dumps with an indent of 0: "[" is line 1, the first entry's "{" line 2
    ok = entry()
    first_lines = json.dumps([ok], indent=0).count("\n")
    told = faults_of(
        ok, entry(pre_text=..., table=[[1]], qa={"question": ""}), entry(filename="../up.pdf", id=..., qa={"exe_ans": None}), indent=0
    )
    assert told[0].startswith(f"f.json:{1 + first_lines}: entry 2 (AB/2020/page_1.pdf-1): pre_text is missing")
    assert [fault.partition("): ")[2].partition(" (")[0] for fault in told[:3]] == [
        "pre_text is missing",
        "table is no list of rows of texts",
        "qa.question is missing or empty",
    ]
    assert [fault.partition("entry 3: ")[2].partition(" (")[0] for fault in told[3:]] == [
        "has neither a filename nor an id that names a page",
        "qa.exe_ans is None",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "f.json:1: is not a JSON list"),
        ("[]", "f.json: holds no entry"),
        ("[5]", "f.json:1: an entry is not an object"),
        ("[\n{}\n,{oops}]", "f.json:3: broken JSON"),
        (json.dumps([entry()])[:-1], "f.json:1: the list has no end"),
    ],
)
def test_what_is_not_the_format_is_told(text, told):
    with pytest.raises(FaultsFound) as caught:
        read_finqa(text, "f.json")
    assert [fault for fault in caught.value.faults if str(fault).startswith(told)]


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b.pdf", "..", "a//b.pdf", "a\\b.pdf", ""])
def test_a_name_that_leads_out_of_the_corpus_is_a_fault(name):
    assert "names a page" in faults_of(entry(filename=name, id=...))[0]


def test_two_entries_that_show_one_page_differently_keep_both():
    adapted = adapt({"train": read(entry(), entry(id="2")), "val": read(entry(id="3", post_text=["more"]))})
    assert sorted(adapted.documents) == ["reports/AB/2020/page_1-2.html", "reports/AB/2020/page_1.html"]
    assert [row.expected.evidence_path for row in adapted.rows["train"]] == ["reports/AB/2020/page_1.html"] * 2
    assert "more" in adapted.documents[adapted.rows["val"][0].expected.evidence_path]
    assert "a &amp; b ." in adapted.documents["reports/AB/2020/page_1.html"]


def test_the_faults_of_all_files_come_at_once_and_an_id_belongs_to_one_entry(tmp_path):
    for name, content in (("a", "{}"), ("b", "[3]"), ("c", json.dumps([entry()]))):
        (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(FaultsFound) as caught:
        write_finqa({"train": tmp_path / "a.json", "val": tmp_path / "b.json"}, tmp_path / "out", ORIGIN)
    assert [fault.where for fault in caught.value.faults] == [f"{tmp_path}/a.json:1", f"{tmp_path}/b.json:1"]
    with pytest.raises(FaultsFound, match="already taken in train"):
        write_finqa({"train": tmp_path / "c.json", "val": tmp_path / "c.json"}, tmp_path / "out", ORIGIN)
    with pytest.raises(UserError, match="cannot read"):
        write_finqa({"train": tmp_path / "none.json"}, tmp_path / "out", ORIGIN)
    assert not (tmp_path / "out").exists()
