"""Search, list and read over a small corpus, as the model sees them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.datasets.filings import TOOLS
from serving.tools.corpus import CorpusTools, text_of

HENDERSON = """<html><head><title>x</title></head>
<body><h1>Henderson Q3 2025</h1>
<table>
<tr><td>revenue</td><td>$842M</td></tr>
<tr><td>operating margin</td><td>13.4%</td></tr>
</table></body></html>
"""
DOCUMENTS = {
    "filings/henderson-q3.html": HENDERSON,
    "filings/atlas-10k.html": "Atlas fiscal 2024\nrevenue: $400M",
    "notes/todo.txt": "call the auditor",
}


def tools(**options):
    return CorpusTools(DOCUMENTS, TOOLS, **options)


def test_a_page_becomes_its_lines():
    assert text_of(HENDERSON) == "Henderson Q3 2025\nrevenue: $842M\noperating margin: 13.4%"


def test_search_shows_path_score_and_the_line_that_matches():
    output, error = tools().call("search", {"query": "Henderson operating margin"})
    assert error is None
    assert output.split("\n")[0].startswith("filings/henderson-q3.html (score 0.")
    assert output.split("\n")[1] == "  operating margin: 13.4%"


def test_where_no_line_matches_the_title_is_shown():
    assert tools().call("search", {"query": "atlas"})[0].split("\n")[1] == "  Atlas fiscal 2024"


def test_search_without_a_match_says_so():
    assert tools().call("search", {"query": "zebra"}) == ("no results; try fewer or other words", None)


def test_list_gives_the_paths_below_a_prefix():
    assert tools().call("list", {"prefix": "filings/"}) == ("filings/atlas-10k.html\nfilings/henderson-q3.html", None)
    assert tools().call("list", {})[0].count("\n") == 2
    assert tools().call("list", {"prefix": "x"}) == ("no path begins with x", None)


def test_an_output_keeps_to_its_budget_and_says_what_was_cut():
    small = CorpusTools({"a.txt": "\n".join(["0123456789"] * 10)}, TOOLS, max_output_tokens=8)
    # 8 tokens are 32 characters: two whole lines of 11 fit, 109 - 21 = 88 are left out
    assert small.call("read", {"path": "a.txt"}) == ("0123456789\n0123456789\n... cut: 88 more characters; ask for less", None)


TOOLS_OVER_DOCUMENTS = tools()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.sampled_from(["search", "list", "read", "other"]), st.dictionaries(st.sampled_from(["query", "prefix", "path"]), json_values))
def test_no_arguments_whatever_raise(name, arguments):
    output, error = TOOLS_OVER_DOCUMENTS.call(name, arguments)
    assert output and error in (None, "model_error")


def test_the_version_follows_everything_that_decides_an_answer():
    versions = {tools().version, tools(max_output_tokens=100).version, CorpusTools({**DOCUMENTS, "a": "b"}, TOOLS).version}
    assert len(versions) == 3
    assert tools().version == tools().version


def test_a_folder_is_read_by_paths_relative_to_its_parent(tmp_path):
    folder = tmp_path / "filings"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("alpha")
    (folder / "ignored.csv").write_text("beta")
    assert CorpusTools.from_folder(folder, TOOLS).call("list", {}) == ("filings/deep/a.txt", None)


def test_a_folder_that_will_not_do_is_named_with_the_cure(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is missing\n  cure: make it with `make data`"):
        CorpusTools.from_folder(tmp_path / "nowhere", TOOLS)
    with pytest.raises(UserError, match=r"holds no \.html or \.txt file"):
        CorpusTools.from_folder(tmp_path, TOOLS)
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"bad\.txt is not UTF-8 text"):
        CorpusTools.from_folder(tmp_path, TOOLS)
