"""`rft inspect RUN` and `rft triage CARD FAULT`: the rollouts of a run that tell the most, as stories; and whose fault each was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
from rich.table import Table
from rich.text import Text

from agent_rft.commands.access import me
from agent_rft.commands.grading import grader_named, services_of
from agent_rft.commands.parts import console
from agent_rft.commands.run_folder import RunFolder
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn
from agent_rft.evaluation.inspect import LISTS, Looked, Story, Try, Which
from agent_rft.evaluation.triage import DEFAULT, Where
from agent_rft.evaluation.tries import score_of
from agent_rft.graders.reports import named
from agent_rft.settings import GraderSettings, Settings
from observability.accesses import note
from observability.cards import whole_id
from observability.store import open_store
from observability.story import CALL_BLOCK, CONTROL
from serving.inspection import Said, Triaged, blamed_each, looked_at, triaged

WIDE = 110
"""Columns of a terminal from which on two tries stand beside each other."""
LABEL = 11
LONGEST = 240
"""Characters of a prompt, a call, a result or an answer, where several stories are told; of one row all is."""
LINES = 3
"""Of a result, there."""
CAME_BACK = ("←", "✗")
LOUD = {"→": "cyan", "←": "dim", "✗": "red", "answer": "bold", "grade": ""}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which stories are told."""

    which: Which | None = None
    """None: the first few of every list."""
    limit: int = 3
    row: str | None = None
    grader: str | None = None
    holdouts: tuple[str, ...] = ()


def inspect(run: str, runs: str, store: str | None, tenant: str | None, asked: Asked) -> None:
    folder = RunFolder.named(run, Path(runs))
    run_id, settings = folder.run_id, _settings(folder)
    url = store or (settings.store.url if settings else DEFAULT.store)
    whose = tenant or (settings.store.tenant if settings else DEFAULT.tenant)
    if url.startswith(("http://", "https://")):
        raise UserError(f"the cards of run {run_id} are at {url}, which only takes cards", "--store URL of its database")
    with closing(services_of(settings.grader if settings else GraderSettings())) as services, closing(open_store(url)) as opened:
        names = asked.holdouts or _holdouts_of(settings)
        holdouts: list[Grader] = [grader_named(name, services, url) for name in names]
        looked = looked_at(opened, whose, run_id, asked.grader, holdouts)
        told = _told(looked, asked)
        shown = [one for stories in told.values() for one in stories]
        note(opened, me(whose), "inspect", run_id, [side.id for one in shown for side in (one.shown, one.beside) if side])
        _show(
            looked,
            told,
            blamed_each(opened, whose, [one.shown.id for one in shown]),
            Where(url, whose),
            folder.found_by,
            whole=bool(asked.row),
        )


def _settings(folder: RunFolder) -> Settings | None:
    """A store may hold cards of runs whose folder is elsewhere, or is no more."""
    return folder.settings([]) if folder.settings_file.exists() else None


def _holdouts_of(settings: Settings | None) -> tuple[str, ...]:
    """Graders that training never saw: they have most to say of it."""
    return tuple(dict.fromkeys((*settings.guards.holdout_graders, *settings.release.holdout_graders))) if settings else ()


def _told(looked: Looked, asked: Asked) -> dict[str, Sequence[Story]]:
    if asked.row:
        return {f"row {asked.row}": [looked.of_row(asked.row)]}
    return {LISTS[name]: stories[: asked.limit] for name, stories in looked.lists.items() if asked.which in (None, name)}


# --- what is shown ------------------------------------------------------------------------------------------------------


def _show(
    looked: Looked, told: dict[str, Sequence[Story]], blamed: Mapping[str, Sequence[Said]], where: Where, found_by: str, *, whole: bool
) -> None:
    by = named(looked.grader) if looked.grader else "no grader: nothing has a score"
    console.print(f"run {looked.run_id}: {len(looked.tuned)} tries of {_model(looked.tuned)}, by {by}")
    if looked.base:
        console.print(f"beside {len(looked.base)} of {_model(looked.base)}")
    else:
        console.print("there is no evaluation of base and tuned: this is what the run's newest step left", style="yellow")
    if looked.erased:
        console.print(f"the words of {len(looked.erased)} others were erased: they are in no list", style="yellow")
    found = {LISTS[name]: len(stories) for name, stories in looked.lists.items()}
    for title, stories in told.items():
        console.print()
        if not stories:
            console.print(f"{title}: none{_why_none(title, looked)}", style="bold")
            continue
        console.rule(f"{title}, the first {len(stories)} of {found[title]}" if title in found else title, align="left", characters="─")
        for place, story in enumerate(stories, 1):
            _show_story(place, story, blamed.get(story.shown.id, ()), whole=whole)
    if any(told.values()):
        options = where.options
        console.print("" if whole else f"\na row with nothing cut short:  rft inspect {found_by} --row ROW{options}")
        console.print(f'whose fault was it?  rft triage CARD model|grader|dataset|tool --note "..."{options}')


def _why_none(title: str, looked: Looked) -> str:
    if title != LISTS["graders"] or len({grade.grader.name for one in looked.tuned for grade in one.grades}) > 1:
        return ""
    return "; one grader alone has scored them: --holdout NAME asks another"


def _model(tries: Sequence[Try]) -> str:
    return ", ".join(dict.fromkeys(one.checkpoint for one in tries)) or "nothing"


def _show_story(place: int, story: Story, blamed: Sequence[Said], *, whole: bool) -> None:
    row = story.shown.row
    kinds = ", ".join(str(row.metadata[name]) for name in ("task_type", "difficulty") if row.metadata.get(name))
    told = ", ".join(f"{one.blamed} by {one.by}" for one in blamed)
    console.print(Text.assemble(f"\n{place}. ", (row.id, "bold"), f"  {kinds}", (f"  triaged: {told}" if told else "", "green")))
    width = console.width if console.is_terminal else None
    for why in story.why:
        console.print(Text(_hanging("   ", why, width), "yellow"))
    for label, text in (("PROMPT", row.prompt), ("REFERENCE", str(row.reference_answer))):
        head = f"   {label:<{LABEL}}"
        console.print(Text.assemble((head, "bold"), _hanging(head, text if whole else _clipped(text), width)[len(head) :]))
    sides = [(_title(one), [(mark, text if whole else _shortened(mark, text)) for mark, text in _lines(one)]) for one in _sides(story)]
    if len(sides) == 2 and width and width >= WIDE:
        grid = Table.grid(padding=(0, 2), expand=True)
        for _ in sides:
            grid.add_column(ratio=1, overflow="fold")
        grid.add_row(*(_joined(title, lines, width // 2 - 2) for title, lines in sides))
        console.print(grid, soft_wrap=False)
        return
    for title, lines in sides:
        console.print(_joined(title, lines, width))


def _sides(story: Story) -> list[Try]:
    return [one for one in (story.beside, story.shown) if one]


def _title(one: Try) -> str:
    reward, count = score_of(one.graded), one.graded.rollout.tool_calls
    told, calls = "no score" if reward is None else f"reward {reward:.2f}", "1 call" if count == 1 else f"{count} calls"
    return f"{one.checkpoint}: {told}, {calls}, try {one.graded.sample_index + 1}, card {one.id}"


def _joined(title: str, lines: Sequence[tuple[str, str]], width: int | None) -> Text:
    made = Text(_hanging("   ", title, width), "underline")
    for mark, text in lines:
        made.append("\n" + _hanging(f"     {mark} ", text, width), LOUD[mark])
    return made


def _hanging(head: str, text: str, width: int | None) -> str:
    """What goes on over several lines begins under its own first word. Nothing is broken where no terminal reads it."""
    lines = _clean(text).split("\n")
    if width:
        lines = [part.plain for line in lines for part in Text(line).wrap(console, max(width - len(head), 1), overflow="fold")]
    return head + f"\n{' ' * len(head)}".join(line.rstrip() for line in lines)


def _lines(one: Try) -> Iterator[tuple[str, str]]:
    """Calls and what came back, the answer, and what each grader made of it."""
    rollout = one.graded.rollout
    for turn in rollout.turns:
        yield from _turn(turn)
    if rollout.ending is Ending.ANSWERED:
        yield "answer", rollout.answer
    else:
        yield "✗", f"{rollout.ending.value if rollout.ending else 'not ended'}: {rollout.reason}"
    for grade in one.grades:
        yield "grade", _grade(grade)


def _turn(turn: Turn) -> Iterator[tuple[str, str]]:
    words = CALL_BLOCK.sub("", turn.text).strip()
    if turn.calls and words:
        yield "→", f"({words})"
    for call in turn.calls:
        yield "→", _call(call)
        yield _result(turn.results.get(call.call_id))


def _call(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in call.arguments.items())})"


def _result(result: ToolResult | None) -> tuple[str, str]:
    if result is None:
        return "✗", "nothing came back"
    text = result.output.strip()
    return ("✗", f"{result.error}: {text}") if result.error else ("←", text)


def _grade(grade: Grade) -> str:
    parts = ", ".join(f"{name} {_plain(value)}" for name, value in {**grade.parts, **grade.errors}.items())
    given = "no score" if grade.reward is None else f"{grade.reward:.2f}"
    return f"{grade.grader.name}@{grade.grader.version} {given}" + (f"  {parts}" if parts else "")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shortened(mark: str, text: str) -> str:
    """A result's first lines, in one; of anything else the beginning."""
    if mark not in CAME_BACK:
        return _clipped(text)
    lines = text.split("\n")
    more = f" … {len(lines) - LINES} more lines" if len(lines) > LINES else ""
    return _clipped(" ⏎ ".join(line.strip() for line in lines[:LINES])) + more


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"


def _clean(text: str) -> str:
    """What a model wrote must not drive the reader's terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


# --- triage ---------------------------------------------------------------------------------------------------------------


def triage(store: str, tenant: str, card: str, fault: str, words: str) -> None:
    with closing(open_store(store)) as opened:
        rollout_id = whole_id(opened.of(tenant), card)
        found = triaged(opened, me(tenant), rollout_id, fault, words, store)
    console.print(f"{rollout_id}: the fault is the {fault}'s; {found.review.verdict}, by {found.review.by}")
    _show_next(found, Where(store, tenant))


def _show_next(found: Triaged, where: Where) -> None:
    if found.change:
        listed = f"`rft change list{where.options}` shows those that are open"
        console.print(f"change request {found.change.id} of the {found.change.target}; {listed}")
    if mending := found.mending:
        console.print("put this into CASES.jsonl, mend the grader in FIXED.json, and the run is seen through it without a rollout:")
        console.print(f"  {mending.case}")
        console.print("\n".join(f"  {one}" for one in mending.commands))
