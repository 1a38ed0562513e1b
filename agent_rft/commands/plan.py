"""`rft plan`: what fits, what does not and what would make it fit, before a GPU minute is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from agent_rft.commands.parts import algorithm_of, console, layout_of, limits_of, model_of
from agent_rft.compose import recipes, settings_for
from agent_rft.contracts.errors import UserError
from agent_rft.evaluation.live import spell_seconds
from agent_rft.planning.plan import Plan, plan
from agent_rft.planning.plots import COLOURS, plot_plan
from agent_rft.planning.seed import PART_NAMES, compared
from agent_rft.planning.setup import GB, Budget, Setup
from agent_rft.planning.shapes import CATALOGUE, ModelShape, shape_of_config
from agent_rft.settings import Settings

WIDE = 120
"""Columns from which on the table tells more."""
BAR = 40
"""Characters for the whole of one memory."""
PIXELS = "▏▎▍▌▋▊▉█"
NOT_COUNTED = (
    "Not counted: time that tools take; reading checkpoints; moving weights between training and generation; the evaluation's models.",
    "Rollouts are taken to fill their token limit, half of it written by the model; real ones are shorter. Stages run one after the other.",
    "A card sold as 80 GB is planned with 80 x 10^9 bytes; an H100 reports 84.9 x 10^9 or more: the rest is for fragmentation.",
)


def show_plan(recipe: str | None, overrides: list[str]) -> None:
    names = [recipe] if recipe else recipes()
    settings = {name: settings_for(name, overrides) for name in names}
    plans = {name: plan_for(one) for name, one in settings.items()}
    console.print(_overview(plans))
    if recipe:
        _show_details(plans[recipe])
    _show_ways_out(plans)
    _show_seed()
    picture = Path(settings[names[0]].run.folder) / "plan" / f"{recipe or 'all'}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_plan(plans, compared(), picture)
    console.print(f"\nbars: {picture}")


def plan_for(settings: Settings) -> Plan:
    """What the preflight asks too."""
    return plan(
        Setup(
            engine=settings.backend.name,
            shape=shape_of(settings.model.path),
            model=model_of(settings),
            algorithm=algorithm_of(settings),
            limits=limits_of(settings),
            layout=layout_of(settings),
            in_flight=settings.backend.rollouts_in_flight,
        )
    )


def shape_of(path: str) -> ModelShape:
    """From the catalogue, a model folder's config.json, or the Hugging Face hub's; in this order."""
    if path in CATALOGUE:
        return CATALOGUE[path]
    file = Path(path) / "config.json" if Path(path).exists() else _from_hub(path)
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", "name a model's folder or Hugging Face id with model.path=...") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no JSON object", "it should be a decoder's config.json as transformers writes it")
    return shape_of_config(config, str(file))


def _from_hub(path: str) -> Path:
    cure = f"name a folder with config.json, an id that this machine can reach, or one that the plan knows: {', '.join(sorted(CATALOGUE))}"
    try:
        from huggingface_hub import hf_hub_download

        from agent_rft.training.pretrained import ask_hub

        ask_hub(path)
        return Path(hf_hub_download(path, "config.json"))
    except Exception as error:  # no such id, no network, no right to it: each fails in its own way
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the shape of model {path} is not known, and its config.json cannot be had: {why}", cure) from None


# --- the table --------------------------------------------------------------------------------------------------------


def _overview(plans: dict[str, Plan]) -> Table:
    """Whole in a terminal of 80 columns; a wider one is told more."""
    wide = console.width >= WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title="GB that one GPU, or one host, must hold", title_justify="left")
    for heading in ("recipe", *(("model",) if wide else ()), "train", "gen", "reference", "host", "GPUs", "step"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("recipe", "model", "reference") else "right")
    if wide:
        table.add_column("cost", no_wrap=True, justify="right")
    table.add_column("fits", no_wrap=True)
    for name, one in plans.items():
        table.add_row(*_row(name, one, wide))
    return table


def _row(name: str, one: Plan, wide: bool) -> Iterator[RenderableType]:
    setup, process = one.setup, one.budget("process")
    yield name
    if wide:
        size = f"{setup.shape.parameters / GB:.2f}B" if setup.shape.parameters >= GB else f"{setup.shape.parameters / 1e6:.2f}M"
        training = f"LoRA {setup.model.lora.rank}" if setup.model.lora else "full"
        yield f"{setup.model.path.rsplit('/', 1)[-1]}, {size}, {training}"
    digits = 1 if wide else 0
    yield _filled(one.budget("training"), digits)
    yield _filled(one.budget("generation"), digits)
    yield _reference_words(one, digits)
    yield _filled(process or one.budget("host"), digits)
    yield str(one.step.gpus) if process is None else "-"
    yield spell_seconds(one.step.seconds)
    if wide:
        yield f"{one.step.cost:.2f}" if one.step.price and one.step.gpus else "-"
    yield Text("yes" if not one.why else "tight" if one.fits else "no", style="green" if one.fits else "red")


def _filled(budget: Budget | None, digits: int) -> Text:
    if budget is None:
        return Text("-")
    return Text(f"{budget.total:.{digits}f}/{budget.limit:g}", style="" if budget.fits else "red")


def _reference_words(one: Plan, digits: int) -> RenderableType:
    setup, budget = one.setup, one.budget("reference")
    if setup.engine == "local":
        return "adapters off" if setup.model.lora else "a copy"
    engine = setup.layout.reference.engine
    if budget is None:
        return engine.replace("_", " ")
    return Text(f"{engine.removeprefix('dedicated_')} {setup.layout.reference.weights} ", style="" if budget.fits else "red").append(
        _filled(budget, digits)
    )


# --- one recipe in detail ---------------------------------------------------------------------------------------------


def _show_details(one: Plan) -> None:
    for budget in one.budgets:
        console.print(_heading(budget))
        for item in budget.items:
            bar = Text(f"  {_bar(item.gb / budget.limit):<{BAR}}", style=COLOURS[item.kind])
            console.print(bar.append(f" {item.gb:>7.2f}  {item.name}: {item.how}", style="default"))
        if budget.note:
            console.print(f"  note: {budget.note}", style="yellow")
    step = one.step
    total = spell_seconds(step.seconds)
    cost = (
        f", {step.cost:.2f} on {step.gpus} GPU{'s' if step.gpus > 1 else ''} at {step.price:g} an hour" if step.price and step.gpus else ""
    )
    console.print(f"\na step of {one.setup.rollouts} rollouts: {total}{cost}", style="bold")
    for stage in step.stages:
        console.print(f"  {_bar(stage.seconds / step.seconds):<{BAR}} {spell_seconds(stage.seconds):>7}  {stage.name}: {stage.how}")
    cluster = one.setup.layout.cluster
    console.print(f"  stated: {cluster.peak_tflops:g} TFLOPS a GPU at {cluster.training_mfu:.0%}, sustained (cluster.*)")
    for line in NOT_COUNTED:
        console.print(f"  {line}", style="dim")


def _heading(budget: Budget) -> Text:
    where = "host" if budget.place in ("host", "process") else "GPU"
    plural = f"{budget.count} x " if budget.count > 1 else ""
    spare = f"{budget.margin:.1f} to spare" if budget.margin >= 0 else f"{-budget.margin:.1f} too much"
    text = Text(f"\n{budget.place}: {plural}{where} of {budget.limit:g} GB, {budget.total:.1f} needed, {spare}", style="bold")
    return text.append(" (tight)" if budget.tight else "", style="yellow")


def _bar(share: float) -> str:
    """As long as its share of the memory; what is there at all is seen."""
    eighths = min(BAR * 8, max(1, round(share * BAR * 8)))
    return "█" * (eighths // 8) + (PIXELS[eighths % 8 - 1] if eighths % 8 else "")


def _show_ways_out(plans: dict[str, Plan]) -> None:
    for name, one in plans.items():
        if not one.why:
            continue
        console.print(f"\n{name} {'fits, ' if one.fits else 'does not fit: '}{one.why}", style="yellow" if one.fits else "red")
        if not one.fits:
            console.print(f"  cure: {one.cure}")


def _show_seed() -> None:
    table = Table(
        "model",
        title="\nThe picture that the project began with (LoRA 32, all GPUs together, GB) beside our arithmetic",
        title_justify="left",
    )
    for heading in ("theirs", "ours", *PART_NAMES.values()):
        table.add_column(heading, justify="right")
    pictures = compared()
    for one in pictures:
        cells = (f"{one.parts[part]:.1f}" for part in PART_NAMES)
        table.add_row(one.seed.label, f"{one.seed.total_gb:.0f}", f"{one.total:.0f}", *cells)
    console.print(table)
    widest = max(max(one.total, one.seed.total_gb) for one in pictures)
    for one in pictures:
        console.print(Text(f"  {one.seed.label:>3} theirs {_bar(one.seed.total_gb / widest)} {one.seed.total_gb:.0f}", style="dim"))
        line = Text("      ours   ")
        for part in PART_NAMES:
            line.append("█" * round(one.parts[part] / widest * BAR), style=COLOURS[part])
        console.print(line.append(f" {one.total:.0f}"))
        console.print(f"      {one.why}")
