"""The report tells the run, worst rows first, and nothing that came from outside can act in it."""

import math
import re
import runpy
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from agent_rft.contracts.guards import Limit
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import RowDiff, compare
from agent_rft.evaluation.figures import Watched
from agent_rft.evaluation.prior import check_prior
from agent_rft.evaluation.report import compared
from agent_rft.evaluation.report.contents import RunReport, with_tries, without_words
from agent_rft.evaluation.report.head import headline, spoken
from agent_rft.evaluation.report.page import body, render_report
from agent_rft.evaluation.report.suite import render_suite
from agent_rft.evaluation.report.versions import masked
from agent_rft.evaluation.scoreboard import scoreboard
from agent_rft.evaluation.slices import slice_rows
from agent_rft.evaluation.trace_html import LONGEST, shortened, telling_tries, trace_html

VERSIONS = Versions(code="0.1.0+abc", checkpoint="r1/60", dataset="d4ta", tool_set="t00l", grader="numeric 1 abc", seed=42)
METRICS = (StepMetrics(step=0, val_reward=0.5, kl_to_ref=0.0), StepMetrics(step=60, val_reward=0.8, kl_to_ref=0.031, infra_failures=2))
make_report = runpy.run_path(str(Path(__file__).with_name("sample_report.py")))["make_report"]
ATTACK = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>"


def reported(base, tuned, **rest):
    given = {"prior": check_prior(base), "metrics": METRICS, "comparison": compare(base, tuned)}
    plain = {"run_id": "r1", "recipe": "research_tiny", "finished_at": "2026-01-02T03:04:05Z", "seconds": 90.0, "settings": {}}
    return with_tries(RunReport(**plain | {"versions": VERSIONS} | given | rest), base, tuned, 1.0)


@pytest.fixture
def report(tried):
    base = tried("up", [0.0, 0.5], 8) + tried("down", [1.0, 1.0], 3) + tried("lost", [None, None])
    tuned = tried("up", [1.0, 1.0], 3) + tried("down", [1.0, 0.0], 5) + tried("lost", [1.0, None], failed_part="grader:numeric")
    return reported(base, tuned, next_step="Next: read it")


class Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(html):
    parser = Balance()
    parser.feed(html)
    assert not parser.open
    return parser.seen


def test_whatever_came_from_outside_is_text(tried):
    outside = {"output": ATTACK, "answer": ATTACK, "prompt": ATTACK, "metadata": {"difficulty": ATTACK}, "failed_part": ATTACK}
    base, tuned = tried(ATTACK, [1.0, None], **outside), tried(ATTACK, [0.0, None], **outside)
    base += tried(f"lost {ATTACK}", [None])
    rest = {"run_id": ATTACK, "recipe": ATTACK, "settings": {ATTACK: ATTACK}, "next_step": ATTACK}
    html = render_report(reported(base, tuned, versions=msgspec.structs.replace(VERSIONS, dataset=ATTACK), **rest))
    assert not tags(html) & {"script", "img"}
    assert html.count("&lt;script&gt;alert(1)") >= 10


def test_a_halted_runs_reason_is_text_too(report):
    html = render_report(msgspec.structs.replace(report, halted=ATTACK))
    assert "script" not in tags(html) and "Halted at step 60" in html


def test_it_asks_nothing_of_the_network_and_says_so_to_the_browser(report):
    html = render_report(report)
    assert "default-src 'none'" in html
    assert not re.search(r"(src|action)=|href=\"[^#]|url\(|@import|https?://", html)


def test_it_tells_every_part_of_the_run(report):
    html = render_report(report)
    assert tags(html) >= {"svg", "table", "details", "style"}
    told = (
        "Prior: what the base model solves",
        "Scoreboard",
        "Base against tuned",
        "Training",
        "How tools are used",
        "What goes wrong",
        "Read these first",
        "Row by row",
        "What made this",
        "Next: read it",
    )
    assert [words for words in told if words not in html] == []
    assert [value for value in ("0.1.0+abc", "r1/60", "d4ta", "t00l", "numeric 1 abc", "42") if value not in html] == []


def test_rows_come_worst_first_with_both_sides(report):
    html = render_report(report)
    html = html[html.index('id="rows"') :]
    assert html.index("What was the revenue in down?") < html.index("What was the revenue in up?")
    # down fell from 1, 1 to 1, 0: base's best is its first try, tuned's worst its second
    down = html[html.index("<b>Prompt</b> What was the revenue in down?") : html.index("<b>Prompt</b> What was the revenue in up?")]
    assert "Base: reward 1.00 <small>try 1 of 2, 3 calls" in down and "Tuned: reward 0.00 <small>try 2 of 2, 5 calls" in down
    assert "search({&quot;query&quot;: &quot;down 0&quot;})" in down and "← Revenue: $842M" in down and "$842M" in down


def test_what_infrastructure_spoilt_is_counted_and_named(report):
    html = render_report(report)
    assert "Left out, no scored try on one side: lost" in html
    assert "<td>infra failed</td><td>2</td><td>1</td>" in html
    assert "infrastructure: tool:search" in html and "infrastructure: grader:numeric" in html
    assert "2 of 0 rollouts of the training were lost to infrastructure" in html


def test_the_headline_claims_no_more_than_the_figures(tried):
    many = range(10)
    low, high = ([one for i in many for one in tried(str(i), [reward], 4)] for reward in (0.0, 1.0))
    mixed = [one for i in many for one in tried(str(i), [float(i == 0)], 4)]
    assert headline(reported(low, high)) == "Better: reward 0.00 → 1.00, tool calls 4.0 → 4.0"
    assert headline(reported(high, low)).startswith("Worse: reward 1.00 → 0.00")
    assert headline(reported(low, mixed)).startswith("No clear change: reward 0.00 → 0.10")  # 0.1 with a standard error of 0.1
    assert headline(reported(low, high, halted="tool:search fails")) == "Halted at step 60: tool:search fails"
    assert headline(reported(low, mixed, comparison=None, metrics=())) == "Prior check: no go"


def test_a_report_of_a_prior_check_alone_stands(report):
    prior_alone = {"comparison": None, "metrics": (), "scoreboard": None, "uses": {}, "failures": {}, "base": (), "tuned": ()}
    html = render_report(msgspec.structs.replace(report, **prior_alone))
    tags(html)
    assert "Prior: what" in html and "Row by row" not in html and "Scoreboard" not in html and "What goes wrong" not in html


def test_a_large_evaluation_lists_all_rows_and_tells_the_worst(report, monkeypatch):
    monkeypatch.setattr(compared, "TRACED_ROWS", 1)
    monkeypatch.setattr(compared, "IN_SIGHT", 1)
    html = compared.rows(report)
    assert html.count("<summary>") == 3 and "1 more rows</summary>" in html
    assert html.count('<section class="trace">') == 2 and "Its traces are in the job cards" in html


def test_secrets_among_the_settings_are_hidden():
    settings = {
        "tools": {"token": "s3cret", "api_key": "k", "url": "u"},
        "limits": {"max_trajectory_tokens": 4096},
        "keys": [{"password": "p"}],
    }
    hidden = "(hidden)"
    expected = {
        "tools": {"token": hidden, "api_key": hidden, "url": "u"},
        "limits": {"max_trajectory_tokens": 4096},
        "keys": [{"password": hidden}],
    }
    assert masked(settings) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h/d", "postgresql://u:(hidden)@h/d"),
        ("postgresql+psycopg://u:p@s/s:w@h:5432/d", "postgresql+psycopg://u:(hidden)@h:5432/d"),
        ("redis://:pw@h", "redis://:(hidden)@h"),
        ("kept at postgresql://u:pw@h/d", "kept at postgresql://u:(hidden)@h/d"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("http://127.0.0.1:8000/tools", "http://127.0.0.1:8000/tools"),
        ("sqlite:///runs/cards.db", "sqlite:///runs/cards.db"),
    ],
)
def test_a_password_within_a_url_is_hidden(url, shown):
    assert masked({"store": {"url": url}, "others": [url]}) == {"store": {"url": shown}, "others": [shown]}


# --- guards -----------------------------------------------------------------------------------------------------------


def test_what_a_guard_said_many_times_is_told_once_with_its_hardest_action_first():
    (first, second) = spoken(make_report().metrics)
    assert (first.guard, first.action, first.steps, first.what) == (
        "holdout_divergence",
        "stop",
        (20, 30, 39),
        "holdout_divergence at step 39",
    )
    assert (second.guard, second.action, second.steps) == ("reward_spread_collapse", "warn", (30,))
    html = render_report(make_report())
    assert "Guards: 2 spoke" in html and "20 to 39, 3 times" in html and "0.28 (from 0.1)" in html
    assert "look at <code>0198-a, 0198-b</code>" in html and "read the rollouts named here" in html


def test_silence_is_said_too(report):
    assert "No guard spoke up to step 60." in render_report(report) and "No guard spoke" not in render_report(make_report())


def test_guards_that_were_switched_off_are_named_beside_the_silence(report):
    watched = Watched({"holdout_divergence": Limit(0.1, "off"), "kl": Limit(0.5, "halt")})
    html = render_report(msgspec.structs.replace(report, watched=watched))
    assert "No guard spoke up to step 60. Switched off, so that nobody looked: holdout divergence. " in html


def test_how_it_ended_is_said_in_the_words_of_the_guard_that_ended_it():
    """The sample's last line is of a guard that stops, which keeps the weights; `halt` throws them away."""
    ended = msgspec.structs.replace(make_report(), comparison=None, halted="the graders part")
    assert headline(ended) == "Stopped at step 39: the graders part"
    *others, last = ended.metrics
    thrown = msgspec.structs.replace(last, findings=[msgspec.structs.replace(one, action="halt") for one in last.findings])
    assert headline(msgspec.structs.replace(ended, metrics=(*others, thrown))) == "Halted at step 39: the graders part"


def test_what_a_held_out_grader_found_stands_beside_the_reward_of_a_run_that_was_ended():
    """From 0.40 to 0.79 reads like a success, where the graders that training never sees stayed where they were."""
    html = render_report(msgspec.structs.replace(make_report(), comparison=None, halted="the graders part"))
    assert "<b>0.40 → 0.79</b><small>over 5 validations; under strict@2 0.41 → 0.41; under judge@1 0.38 → 0.38</small>" in html


def test_a_run_that_goes_on_is_not_called_trained(report):
    going = msgspec.structs.replace(report, comparison=None)
    said = "The scoreboard is of other tries than the last validation"
    assert said in render_report(report) and said not in render_report(going)
    assert headline(going) == "Trained up to step 60, not yet compared with the base"
    assert headline(msgspec.structs.replace(going, metrics=(), prior=None)) == "Not trained yet"


def test_figures_of_a_single_step_go_nowhere(report):
    one = msgspec.structs.replace(report, comparison=None, metrics=(StepMetrics(step=0, val_reward=0.5, entropy=0.3),))
    html = render_report(one)
    assert "Validation reward 0.50</h3>" in html and "Entropy 0.30: no guard spoke" in html and "<b>0.50</b><small>one validation<" in html


def test_a_figure_that_is_no_number_leaves_no_point(report):
    """A broken step's KL may be infinite, and no drawing has room for that."""
    lines = (*METRICS[:1], StepMetrics(step=1, kl_to_ref=math.inf, entropy=math.nan), *METRICS[1:])
    html = render_report(msgspec.structs.replace(report, metrics=lines))
    assert "KL to the reference ends at 0.031, never above 0.031" in html and "nan" not in html and "inf," not in html


def moved(row_id, kind, by):
    sides = {"base_reward": 1.0, "tuned_reward": 1.0 + by, "base_calls": 1.0, "tuned_calls": 1.0}
    return RowDiff(row_id=row_id, metadata={"task_type": kind}, d_reward=by, d_tools=0.0, **sides)


def test_of_many_slices_the_surest_are_in_sight_and_long_names_are_cut():
    """40 slices of a row each; one more, of the other 20 rows, is clearly better."""
    kinds = [*(f"kind-{number}" for number in range(40)), *["x" * 200] * 20]
    rows = [moved(f"r{place}", kind, 0.5 if place >= 40 else 0.0) for place, kind in enumerate(kinds)]
    html = compared.slices(slice_rows(rows, ["task_type"]), len(rows))
    assert f"<h3>Clearly better on {'x' * 60} …; no kind of row clearly worse</h3>" in html
    assert "<summary>29 more, less sure</summary>" in html and html.index("x" * 200) < html.index("kind-")
    assert all(f">kind-{i}<" in html for i in range(40))


def test_a_title_names_five_slices_and_counts_the_others():
    rows = [moved(f"{kind}{i}", kind, -1.0) for kind in "abcdefg" for i in range(12)]
    assert compared.slices_title(slice_rows(rows, ["task_type"])) == "Worse on a, b, c, d, e and 2 more; look there first"


def test_a_kind_of_rows_that_is_alike_and_one_that_differs_are_told_apart():
    html = render_report(make_report())
    assert "train (400) and val (100) are alike" in html
    assert "train (400) and production of research (100) differ in length: figures of one say little about the other" in html


# --- a suite ----------------------------------------------------------------------------------------------------------


def test_models_of_a_suite_are_told_beside_each_other_and_escaped(tried):
    rows = range(24)
    low, high = ([one for i in rows for one in tried(f"r{i}", [reward], metadata={"difficulty": "ab"[i % 2]})] for reward in (0.0, 1.0))
    graded = {"base": low, ATTACK: high, "third": low}
    html = render_suite("suite-1", scoreboard(graded), graded)
    assert "script" not in tags(html)
    assert f"<h1>{escape(ATTACK)} is better than base by 1.00" in html and "third against base, by kind of row" in html
    assert "Better on every kind of row" in html and "No kind of row moved more than luck explains" in html
    assert '<th scope="col">first</th><th scope="col">this</th>' in html and ">tuned<" not in html, (
        "no model of a suite need be a tuned one"
    )


def test_what_is_said_of_several_models_names_them_and_who_is_not_drawn(tried):
    """6, 3 and 0 calls a try: the first and the last alone would hide the one between them. A fourth has no colour."""
    sides = {name: tried("r", [1.0, 1.0], calls=calls) for name, calls in {"a": 3, "b": 6, "c": 0, "d": 1}.items()}
    html = render_suite("suite-1", scoreboard(sides), sides)
    assert "0.0 tool calls a try by c, 6.0 by b" in html
    assert "100.0% of the tries by c answer without looking anything up" in html and "search is called most" in html
    assert html.count("Drawn are the first 3 models; not d.") == 1
    pair = {name: sides[name] for name in "ab"}
    assert "More tool calls a try: 3.0 → 6.0" in (told := render_suite("s", scoreboard(pair), pair)) and "Drawn are" not in told


# --- in a store -------------------------------------------------------------------------------------------------------


def test_what_a_store_keeps_comes_back_whole_and_without_anybodys_words():
    told = without_words(make_report())
    kept = msgspec.json.encode(told)
    assert b"said by a user" not in kept and b"What was the revenue" not in kept and b"$842M" not in kept
    again = msgspec.convert(msgspec.json.decode(kept), type(told), str_keys=True)
    assert body(again) == body(told)


def test_within_another_page_rows_lead_to_their_cards():
    html = body(without_words(make_report()), lambda row: f"/cards?q={row}&x=1")
    assert 'href="/cards?q=row-00&amp;x=1"' in html and "<html" not in html and "<style" not in html
    tags(html)


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_reward", "expected"), [(-0.5, (1.0, 0.0)), (0.5, (0.0, 1.0)), (0.0, (0.5, 0.5))])
def test_the_tries_shown_are_those_that_show_the_change(tried, d_reward, expected):
    tries = tried("a", [0.5, 1.0, 0.0])
    assert tuple(one.reward for one in telling_tries(tries, tries, d_reward)) == expected


def test_a_call_that_never_came_back_is_shown_as_such(tried):
    (lost,) = tried("a", [None])
    lost.rollout.turns[0].results.clear()
    html = trace_html("Base", lost, 1)
    assert "← nothing came back" in html and "no score" in html and "infra_failed" in html


def test_long_outputs_are_cut_and_say_by_how_much():
    assert shortened("x" * LONGEST) == "x" * LONGEST
    assert shortened("x" * (LONGEST + 5)).endswith("x … (5 more characters)")
