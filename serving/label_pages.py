"""The labelling pages as HTML: whole documents that fetch nothing. What a model, a tool or a user wrote is escaped, all of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import urlencode

import msgspec

from agent_rft.graders.labelling import Agreement, Differing, Passage, Round, Shown, after, figures, unscored
from serving.label_style import SCRIPT, STYLE

KINDS = ("train", "eval", "prior", "production")
LISTED = 200
"""Differing rollouts on the page."""
COUNT, MOST = 20, 1000
"""Rollouts in a sitting: what the form proposes, and what it takes."""


def _source(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_source(STYLE)}",
        f"script-src {_source(SCRIPT)}",
        "img-src data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Were anything to slip through the escaping, it still could not run or send."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # under no-referrer browsers would hide a form's origin from us, too
    "cache-control": "no-store",
}


class Sitting(msgspec.Struct, frozen=True):
    """Where a person is. It travels in the page's addresses and forms; the server keeps none of it."""

    round: Round
    left: int = COUNT
    start: str = ""
    undo: str = ""
    """The place that was labelled last."""
    undo_left: int = 0
    """What was left then."""

    def fields(self) -> dict[str, str]:
        fields = {
            "run": self.round.run_id,
            "kind": self.round.kind or "",
            "left": str(self.left),
            "start": self.start,
        }
        return fields | ({"undo": self.undo, "undo_left": str(self.undo_left)} if self.undo else {})

    def address(self, page: str, **more: str) -> str:
        return f"/labels/{page}?{urlencode(self.fields() | more, errors='replace')}"


def document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body>{body}<script>{SCRIPT}</script></body></html>"
    )


def choice_page(runs: Sequence[tuple[str, int]]) -> str:
    if not runs:
        return trouble_page("the store holds no run yet", "train one first: make train")
    offered = "".join(f'<option value="{escape(run)}">{escape(run)} ({count} rollouts)</option>' for run, count in runs)
    kinds = "".join(f"<option>{kind}</option>" for kind in KINDS)
    body = (
        "<main><h1>Labels by people</h1>"
        "<p>You see what was asked, done and answered, and what was right; not what any grader or person made of it. "
        "How far you agree is shown afterwards.</p>"
        '<form class="ask" method="get" action="/labels/next">'
        f'<label>Run <select name="run">{offered}</select></label>'
        f'<label>Kind of rollout <select name="kind"><option value="">every kind</option>{kinds}</select></label>'
        f'<label>How many <input name="left" type="number" min="1" max="{MOST}" value="{COUNT}" required></label>'
        '<div><button class="main">Start</button></div></form></main>'
    )
    return document("Labels by people", body)


def rollout_page(sitting: Sitting, shown: Shown, note: str = "") -> str:
    told = [one for one in shown.passages if one.part not in ("answer", "reference")]
    verdict = [one for one in shown.passages if one.part in ("answer", "reference")]
    to_go = min(sitting.left, shown.ahead)
    body = (
        f'<main><h1>Run {escape(sitting.round.run_id)}</h1><p class="soft">{to_go} to go, labelled by {escape(sitting.round.who)}</p>'
        f"{_note(note)}{''.join(map(_passage, told))}"
        f'<div class="verdict">{"".join(map(_passage, verdict))}</div></main>{_controls(sitting, shown.place)}'
    )
    return document(f"{to_go} to go", body)


def _passage(passage: Passage) -> str:
    return (
        f'<section class="{passage.part}"><h2>{escape(passage.title)}</h2><p class="text" dir="auto">{escape(passage.text)}</p></section>'
    )


def _controls(sitting: Sitting, place: str) -> str:
    here = _hidden(sitting.fields() | {"place": place})
    skip = msgspec.structs.replace(sitting, start=after(place), left=sitting.left - 1).address("next")
    scores = "".join(
        f'<button name="score" value="{key}" data-key="{key}" aria-keyshortcuts="{key}">{word}<kbd>{key}</kbd></button>'
        for key, word in (("0", "Wrong"), ("h", "Half"), ("1", "Right"))
    )
    undo_key = '<button data-key="u" aria-keyshortcuts="u">Undo the last<kbd>u</kbd></button>'
    undo = f'<form method="post" action="/labels/undo">{here}{undo_key}</form>' if sitting.undo else ""
    return (
        f'<footer class="give" aria-label="Your score"><div><form method="post" action="/labels/give">{here}{scores}</form>'
        f'<form method="post" action="/labels/give">{here}<label>or 0 to 1 '
        '<input name="score" type="number" min="0" max="1" step="any" required></label><button>Give</button></form>'
        f'<a class="button" href="{escape(skip)}" data-key="s" aria-keyshortcuts="s">Skip<kbd>s</kbd></a>{undo}'
        f'<a href="{escape(sitting.address("agreement"))}">Stop here</a></div></footer>'
    )


def agreement_page(sitting: Sitting, found: Sequence[Agreement], unlabelled: int, note: str = "") -> str:
    again = Sitting(sitting.round).address("next")
    more = f'<p><a href="{escape(again)}">Label more</a> ({unlabelled} left)</p>' if unlabelled else "<p>Every rollout has your label.</p>"
    body = (
        f"<main><h1>Agreement of {escape(sitting.round.who)}</h1>"
        f'<p class="soft">Over everything of run {escape(sitting.round.run_id)} that you labelled</p>{_note(note)}'
        f"{''.join(_agreement(one, sitting.round.run_id) for one in found) or _note(NOBODY_ELSE)}"
        f'{more}<p><a href="/labels">Another run</a></p></main>'
    )
    return document("Agreement", body)


NOBODY_ELSE = "Nobody else, grader or person, has scored what you labelled."


def _agreement(found: Agreement, run_id: str) -> str:
    name = escape(found.name)
    rows = "".join(f'<tr><th scope="row">{escape(title)}</th><td>{escape(value)}</td></tr>' for title, value in figures(found))
    return f"<table><caption>With {name}</caption>{rows}</table>{_note(unscored(found, run_id))}{_differing(found, name)}"


def _differing(found: Agreement, name: str) -> str:
    if not found.differ:
        return ""
    more = len(found.differ) - LISTED
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return (
        f"<table><caption>{len(found.differ)} scored otherwise</caption>"
        f'<tr><th scope="col">Rollout</th><th scope="col">You</th><th scope="col">{name}</th></tr>'
        f"{''.join(map(_differs, found.differ[:LISTED]))}</table>{rest}"
    )


def _differs(one: Differing) -> str:
    return f"<tr><td><code>{escape(one.rollout_id)}</code></td><td>{one.own:g}</td><td>{one.other:g}</td></tr>"


def trouble_page(what: str, cure: str) -> str:
    said = f"{what}\n{cure}" if cure else what
    return document(
        "Labels by people", f'<main><h1>Labels by people</h1>{_note(said, trouble=True)}<p><a href="/labels">Back</a></p></main>'
    )


def _note(text: str, *, trouble: bool = False) -> str:
    role, kind = ("alert", "note trouble") if trouble else ("status", "note")
    return f'<p class="{kind}" role="{role}">{escape(text)}</p>' if text else ""


def _hidden(fields: Mapping[str, str]) -> str:
    return "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items())
