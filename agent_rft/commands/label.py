"""`rft label`: a person scores rollouts of a run without seeing what anybody else, grader or person, made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agent_rft.commands.access import me
from agent_rft.commands.label_desk import StoreDesk
from agent_rft.commands.parts import console
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import Kind
from agent_rft.graders.labelling import Agreement, Desk, Round, Shown, after, asked_by, figures, read_score, unscored
from observability.accesses import note
from observability.cards import of_one_tenant
from observability.store import open_store

SHOWN = 20
"""Differing rollouts that are listed."""
ASK = "score: 0, h (half), 1, or a number from 0 to 1; s skip, u undo, q quit > "
PAGE = "the page: make serve, then /labels"
Ask = Callable[[], str | None]
"""What the person types next; None once no more can come."""


class Session(msgspec.Struct):
    """One sitting."""

    left: int
    """Rollouts still to show."""
    start: str = ""
    given: list[tuple[str, int]] = []
    """For undo: each place that was labelled, with what was left then."""


def label(url: str, run_id: str, who: str, count: int, kind: Kind | None, tenant: str = "default") -> None:
    if count < 1:
        raise UserError(f"--count {count} asks for no rollout", "1 or more")
    round_ = Round(run_id, asked_by(who), kind)
    with closing(open_store(url)) as opened:
        store = of_one_tenant(opened, tenant, run_id)
        caller = me(store.tenant or tenant)
        desk = StoreDesk(store, lambda action, run, ids: note(store, caller, action, run, ids))
        session = Session(count)
        if not _sit(desk, round_, session, _ask):
            raise UserError("nobody answers: standard input is closed", f"a terminal, a pipe with an answer a line, or {PAGE}")
        console.print(f"\n{len(session.given)} label{'' if len(session.given) == 1 else 's'} of {round_.who} kept")
        show_agreement(desk.agreement(round_), run_id)


def _ask() -> str | None:
    """A line, from a terminal or a pipe. Ctrl-C ends the sitting as q does: what was given is kept."""
    if sys.stdin is None or sys.stdin.closed:
        return None
    print(ASK, end="", flush=True)
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        return "q"
    if not line:
        print()
    return line.strip() if line else None


def _sit(desk: Desk, round_: Round, session: Session, ask: Ask) -> bool:
    """Until the person ends it or nothing is left. False where there was something to ask, and never an answer."""
    heard = False
    while session.left:
        shown = desk.next(round_, session.start)
        if shown is None:
            _tell_done(desk.next(round_), round_)
            return True
        _show(shown, session)
        answer = ask()
        if answer is None or answer.lower() == "q":
            return heard or answer is not None
        heard = True
        _act(desk, round_, session, shown, answer)
    return True


def _tell_done(skipped: Shown | None, round_: Round) -> None:
    of_kind = f" ({round_.kind})" if round_.kind else ""
    if skipped is None:
        console.print(f"nothing is left to label: every rollout of run {round_.run_id}{of_kind} has {round_.who}'s label")
    else:
        console.print(f"that was the last one; {skipped.ahead} skipped: the same command shows them again")


def _act(desk: Desk, round_: Round, session: Session, shown: Shown, answer: str) -> None:
    word = answer.lower()
    if word == "u":
        _undo(desk, round_, session)
        return
    if word != "s":
        try:
            score = read_score(answer)
        except UserError as error:
            console.print(f"{error.what}: {error.cure}")
            return
        if desk.give(round_, shown.place, score):
            session.given.append((shown.place, session.left))
        else:
            console.print(f"{round_.who} has labelled this one elsewhere meanwhile; that label stays")
    session.start = after(shown.place)
    session.left -= 1


def _undo(desk: Desk, round_: Round, session: Session) -> None:
    if not session.given:
        console.print("there is nothing to undo in this sitting")
        return
    session.start, session.left = session.given.pop()
    desk.take_back(round_, session.start)
    console.print("the last label is taken back; here it is again")


# --- what is shown ------------------------------------------------------------------------------------------------------


def _show(shown: Shown, session: Session) -> None:
    console.rule(f"{min(session.left, shown.ahead)} to go")
    for passage in shown.passages:
        console.print(passage.title.upper(), style="bold")
        console.print("\n".join(f"  {line}" for line in passage.text.split("\n")))
        console.print()


def show_agreement(found: Sequence[Agreement], run_id: str) -> None:
    if not found:
        console.print("no agreement to show: nobody else, grader or person, has scored what was labelled")
    for one in found:
        console.print(f"\nwith {one.name}", style="bold")
        for title, value in figures(one):
            console.print(f"  {title:<22}{value}")
        if missing := unscored(one, run_id):
            console.print(f"  {missing}")
        if one.differ:
            _show_differing(one)


def _show_differing(found: Agreement) -> None:
    console.print(f"  {len(found.differ)} of {found.compared} scored otherwise:")
    table = Table("rollout", "you", found.name, box=SIMPLE_HEAD)
    for one in found.differ[:SHOWN]:
        table.add_row(one.rollout_id, f"{one.own:g}", f"{one.other:g}")
    console.print(table, soft_wrap=False)
    if (more := len(found.differ) - SHOWN) > 0:
        console.print(f"  ... and {more} more")
