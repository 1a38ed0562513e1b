"""The three research tools over a folder of documents: search, list, read."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import ToolSpec
from serving.tools.retrieval import LexicalIndex, Retriever, words

CHARS_PER_TOKEN = 4  # a budget is a guard, not a bill: near enough for any tokenizer
TOP_K = 3
LINES_KEPT_OF_DOCUMENTS = 4096  # their words, found once and not for every query
Answer = tuple[str, str | None]


class Line(NamedTuple):
    text: str
    words: frozenset[str]
    length: int

    def share(self, asked: set[str]) -> float:
        """How much of the line the query asks for."""
        return len(asked & self.words) / (self.length or 1)


class BadArgument(Exception):
    """The model's mistake, told so that its next call can be right."""


class CorpusTools:
    """Search, list and read over documents held in memory. Bad arguments are answered with what to change."""

    def __init__(
        self,
        documents: Mapping[str, str],
        specs: Sequence[ToolSpec],
        max_output_tokens: int = 512,
        retriever_of: Callable[[Sequence[str]], Retriever] = LexicalIndex,
    ) -> None:
        self.specs = tuple(specs)
        self._paths = sorted(documents)
        self._texts = {path: text_of(documents[path]) for path in self._paths}
        self._max_chars = max_output_tokens * CHARS_PER_TOKEN
        self._retriever = retriever_of([f"{path}\n{self._texts[path]}" for path in self._paths])
        self._lines = lru_cache(LINES_KEPT_OF_DOCUMENTS)(self._lines_of)
        self.blocks = self._retriever.blocks
        self.version = _hash(documents, f"corpus-tools/1 top_k={TOP_K} budget={max_output_tokens} {self._retriever.version}")

    @classmethod
    def from_folder(cls, folder: Path, specs: Sequence[ToolSpec], **options: Any) -> CorpusTools:
        """Every .html and .txt file below the folder, by its path relative to the folder's parent."""
        if not folder.is_dir():
            raise UserError(f"corpus folder {folder} is missing", "make it with `make data`, or name another with tools.corpus=FOLDER")
        root = folder.absolute().parent
        files = [f for f in sorted(folder.absolute().rglob("*")) if f.suffix in (".html", ".txt") and f.is_file()]
        if not files:
            raise UserError(f"corpus folder {folder} holds no .html or .txt file", "make the corpus with `make data`")
        return cls({f.relative_to(root).as_posix(): _content(f) for f in files}, specs, **options)

    def call(self, name: str, arguments: dict[str, Any]) -> Answer:
        tool = {"search": self._search, "list": self._list, "read": self._read}.get(name)
        if tool is None:
            return f"Error: no tool named {name}; there are search, list and read", "model_error"
        try:
            return self._within_budget(tool(arguments)), None
        except BadArgument as mistake:
            return self._within_budget(f"Error: {mistake}"), "model_error"

    def _search(self, arguments: dict[str, Any]) -> str:
        query = _required(arguments, "query")
        hits = self._retriever.search(query, TOP_K)
        asked = set(words(query))
        found = [f"{self._paths[hit.position]} (score {hit.score:.2f})\n  {self._best_line(hit.position, asked)}" for hit in hits]
        return "\n".join(found) or "no results; try fewer or other words"

    def _best_line(self, position: int, asked: set[str]) -> str:
        """The line with the largest share of the query's words; where none has any, the first: the title."""
        title, *others = self._lines(position)
        best = max(others, key=lambda line: line.share(asked), default=title)
        return best.text if best.share(asked) else title.text

    def _lines_of(self, position: int) -> list[Line]:
        lines = self._texts[self._paths[position]].split("\n")
        return [Line(line, frozenset(found), len(found)) for line in lines for found in [words(line)]]

    def _list(self, arguments: dict[str, Any]) -> str:
        prefix = _text_of_argument(arguments, "prefix")
        start = bisect.bisect_left(self._paths, prefix)
        end = bisect.bisect_left(self._paths, prefix + "\U0010ffff")
        return "\n".join(self._paths[start:end]) or f"no path begins with {prefix}"

    def _read(self, arguments: dict[str, Any]) -> str:
        path = _required(arguments, "path")
        if path not in self._texts:
            raise BadArgument(f"no document at {path}; search or list to find paths")
        return self._texts[path]

    def _within_budget(self, output: str) -> str:
        if len(output) <= self._max_chars:
            return output
        kept = output[: self._max_chars].rsplit("\n", 1)[0]
        return f"{kept}\n... cut: {len(output) - len(kept)} more characters; ask for less"


class _Text(HTMLParser):
    """The words of a page, one line a heading, paragraph or table row; cells become `name: value`."""

    BLOCKS = frozenset(["h1", "h2", "h3", "p", "tr", "li", "div", "title"])

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[list[str]] = [[]]
        self._skip = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skip = tag in ("title", "script", "style")
        if tag in self.BLOCKS:
            self.lines.append([])

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        if not self._skip and data.strip():
            self.lines[-1].append(data.strip())


def text_of(document: str) -> str:
    if "<html" not in document[:200].lower():
        return document.strip()
    parser = _Text()
    parser.feed(document)
    return "\n".join(": ".join(cells) for cells in parser.lines if cells)


def _required(arguments: dict[str, Any], name: str) -> str:
    value = _text_of_argument(arguments, name).strip()
    if not value:
        raise BadArgument(f"{name} is required")
    return value


def _text_of_argument(arguments: dict[str, Any], name: str) -> str:
    """A number is taken as its digits: what was meant is plain. Nothing, or null, is the empty text."""
    value = arguments.get(name)
    if isinstance(value, (dict, list)):
        raise BadArgument(f"{name} must be a string")
    return "" if value is None else str(value)


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start})", "convert it, or move it out of the corpus"
        ) from error


def _hash(documents: Mapping[str, str], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for path in sorted(documents):
        digest.update(path.encode() + b"\0" + documents[path].encode() + b"\0")
    return digest.hexdigest()[:16]
