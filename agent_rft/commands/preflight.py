"""What is looked over before a large run spends its first GPU minute. Every check runs, whatever the others found, and all
that is wrong is told at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from agent_rft.commands.grading import grader_of
from agent_rft.commands.parts import Data, card_server_of, console, job_of, layout_of, limits_of, model_of, read_data, served_tools
from agent_rft.commands.plan import plan_for
from agent_rft.commands.run_folder import VERSIONS
from agent_rft.commands.serve import provider_of
from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.ports import Grader, waits
from agent_rft.contracts.rollouts import Ending
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import TrainingJob
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.graders.apply import grade_rollout
from agent_rft.planning.shapes import CATALOGUE
from agent_rft.rollouts.driver import Try, start
from agent_rft.settings import Settings
from observability.store import open_store

GRADED_ROWS, JUDGED_ROWS = 50, 4
"""Rows that the grader is tried on; a judge is paid for each."""
BYTES_A_TRAINED_WEIGHT = 14
"""In a checkpoint: the weight itself, its float32 master and Adam's two moments."""
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
"""NeMo RL's policy asks for it, after vLLM has been loaded."""


class Failed(Exception):
    """A check that did not pass."""

    def __init__(self, *faults: Fault, told: str = "") -> None:
        super().__init__(*faults)
        self.faults = faults
        self.told = told or "; ".join(fault.what for fault in faults)


class World(msgspec.Struct):
    """What the checks find out, for those after them."""

    settings: Settings
    grader: Grader
    data: Data | None = None
    tool_set: str = ""
    base_found: bool = False
    laid_out: bool = False


def preflight(settings: Settings, but: Collection[str] = ()) -> Data:
    """Prints the list; raises with everything that is wrong; answers the data, which it had to read anyway. `but`: checks that
    the occasion does without."""
    world = World(settings, grader_of(settings))
    checks: dict[str, Callable[[World], str]] = {
        "data": _data,
        "grader": _grader,
        "tools": _tools,
        "base model": _base,
        "layout": _layout,
        "memory plan": _plan,
        "engine": _engine,
        "machines": _machines,
        "prior check": _prior,
        "checkpoints": _checkpoints,
        "card store": _store,
    }
    faults = [fault for name, check in checks.items() if name not in but for fault in _run(name, check, world)]
    if faults or world.data is None:
        cure = "mend these; nothing was started and nothing was spent"
        raise FaultsFound(f"{settings.recipe} cannot start:", _once(faults), cure, exit_code=2)
    return world.data


def _once(faults: Sequence[Fault]) -> list[Fault]:
    """What two checks ran into, the first one tells."""
    told: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        told.setdefault((fault.what, fault.cure), fault)
    return list(told.values())


def _run(name: str, check: Callable[[World], str], world: World) -> Iterator[Fault]:
    try:
        told = check(world)
    except Failed as failed:
        yield from failed.faults
        told = failed.told
    except FaultsFound as found:
        yield from found.faults
        told = found.what.partition("\n")[0].rstrip(":")
    except UserError as error:
        yield Fault(name, error.what, error.cure)
        told = error.what
    else:
        console.print(Text("  ").append("ok     ", style="green").append(f" {name}: {told}"))
        return
    console.print(Text("  ").append("missing", style="red").append(f" {name}: {told}"))


def _data(world: World) -> str:
    world.data = read_data(world.settings, world.grader)
    return f"{len(world.data.train)} training rows, {len(world.data.val)} held out"


def _grader(world: World) -> str:
    """The reference answer, given as the answer, must pass; an empty one must not."""
    if world.data is None:
        raise Failed(told="not tried: the data has faults")
    ref, limits, pass_at = world.grader.ref, limits_of(world.settings), world.settings.grader.pass_at

    def passes(row: Row, answer: str) -> bool:
        rollout = start(Try(row, 0, 0), limits)
        rollout.ending, rollout.answer = Ending.ANSWERED, answer
        grade = grade_rollout(row, rollout, world.grader)
        return bool(grade and grade.reward is not None and grade.reward >= pass_at)

    asked = GRADED_ROWS if not waits(world.grader) else JUDGED_ROWS
    rows = [row for row in world.data.train if row.reference_answer is not None][:asked]
    wrong = [row.id for row in rows if not passes(row, str(row.reference_answer)) or passes(row, "")]
    if wrong:
        what = f"{ref.name} fails the reference answer itself, or passes an empty one, on {len(wrong)} of {len(rows)} rows"
        raise Failed(Fault("grader", f"{what}, {wrong[0]} the first", "try it with `rft grade` on such a case; mend grader or row"))
    return f"{ref.name} {ref.version} passes {len(rows)} reference answers"


def _tools(world: World) -> str:
    wanted = world.settings.tools
    if wanted.url:
        names, world.tool_set = served_tools(wanted.url)
        return f"{', '.join(names)} at {wanted.url} ({world.tool_set})"
    provider = provider_of(world.settings)
    listed, error = provider.call("list", {"prefix": ""})
    if error or not listed:
        raise Failed(Fault("tools.corpus", f"our own server would list nothing from {wanted.corpus}", "`make data` makes the default"))
    world.tool_set = provider.version
    return f"{', '.join(spec.name for spec in provider.specs)} of our own, over {wanted.corpus}"


def _base(world: World) -> str:
    from agent_rft.training.pretrained import weights_name

    settings = world.settings
    name = weights_name(settings.model.path)
    world.base_found = True
    if settings.reference.engine == "dedicated_vllm" and settings.reference.path:
        try:
            name += f", reference {weights_name(settings.reference.path)}"
        except UserError as error:
            raise Failed(Fault("reference.path", error.what, error.cure)) from None
    return name


def _layout(world: World) -> str:
    """How the run is cut up, by arithmetic, and every key of NeMo RL's that comes of it."""
    from agent_rft.training.nemo.backend import check_translation

    if world.data is None:
        raise Failed(told="not tried: the data has faults")
    layout = layout_of(world.settings)
    check_translation(_job(world.settings, world.data), layout)
    world.laid_out = True
    if layout.workers == "cpu":
        return "one worker on the CPU"
    parallel = layout.parallel
    return f"TP{parallel.tensor} x PP{parallel.pipeline} x CP{parallel.context} x DP{layout.data_parallel}, {layout.workers} workers"


def _job(settings: Settings, data: Data) -> TrainingJob:
    return job_of(settings, data, "preflight", settings.run.folder, Versions(code="", checkpoint=""), False)


def _plan(world: World) -> str:
    if not world.laid_out:
        raise Failed(told="not tried: the layout has faults")
    _must_know_size(world)
    found = plan_for(world.settings)
    if not found.fits:
        raise Failed(Fault("memory plan", found.why, found.cure))
    return found.why or "fits"


def _must_know_size(world: World) -> None:
    """What cannot be loaded may still be a model that the plan knows."""
    if not world.base_found and world.settings.model.path not in CATALOGUE:
        raise Failed(told="not tried: the base model's size is not known")


def _engine(world: World) -> str:
    from agent_rft.training.nemo import find

    if error := find.why_not():
        raise error
    if layout_of(world.settings).workers == "megatron" and ARCHITECTURES not in os.environ:
        cure = f"export {ARCHITECTURES}=9.0 for an H100; NVIDIA's container has it set"
        raise Failed(Fault("engine", f"{ARCHITECTURES} is not set", cure))
    if world.laid_out and world.data is not None:
        from agent_rft.training.nemo.backend import check_values

        check_values(_job(world.settings, world.data), layout_of(world.settings))
    return f"NeMo RL {find.VERSION}"


def _machines(world: World) -> str:
    from agent_rft.training.nemo.machines import nodes_of
    from agent_rft.training.nemo.placement import missing_resources

    layout = layout_of(world.settings)
    if layout.workers == "cpu":
        return f"{os.cpu_count()} CPU cores here"
    nodes: Sequence[Any] = nodes_of(layout)
    if faults := missing_resources(layout, nodes):
        raise Failed(*faults)
    beside = f", {layout.reference.resource} beside" if layout.reference.dedicated else ""
    return f"{layout.cluster.nodes} node(s) of {layout.cluster.gpus_per_node} GPUs{beside}"


def _prior(world: World) -> str:
    """Where it is not measured within the run, a verdict for this very base, data, tools and grader must be there."""
    settings = world.settings
    if settings.prior.source == "run":
        return "is measured first"
    if settings.prior.override:
        return "overridden"
    if world.data is None or not world.tool_set:
        raise Failed(told="not tried: data or tools have faults")
    ref = world.grader.ref
    found = recorded_prior(settings, f"{ref.name}@{ref.version}#{ref.hash}", world.data.hash, world.tool_set)
    if found is None:
        what = f"no verdict is recorded in {settings.run.folder}/ for this base, data, tools and grader"
        recipe = settings.recipe
        cure = f"measure it: make prior CONF={recipe} (in the container: rft prior {recipe}); or train without: prior.override=true"
        raise Failed(Fault("prior check", what, cure))
    if found.verdict == "no go":
        raise Failed(Fault("prior check", f"says no go: {found.why}", found.cure))
    return f"{found.verdict}: {found.why}"


def recorded_prior(settings: Settings, grader: str, dataset: str, tool_set: str) -> PriorCheck | None:
    """The newest verdict that was measured on this base, data, tools and grader."""
    for file in sorted(Path(settings.run.folder).glob("*/prior.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            began = msgspec.json.decode(file.with_name(VERSIONS).read_bytes(), type=Versions)
            check = msgspec.json.decode(file.read_bytes(), type=PriorCheck)
        except (OSError, msgspec.MsgspecError):
            continue
        same = (began.dataset, began.grader, began.tool_set) == (dataset, grader, tool_set)
        if same and began.checkpoint.startswith(f"{settings.model.path}@"):
            return check
    return None


def _checkpoints(world: World) -> str:
    """Room for as many as are kept, and one more while it is being written."""
    settings = world.settings
    folder, copies = Path(settings.run.folder), settings.backend.keep_checkpoints + 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(Fault("run.folder", f"{folder} cannot be made: {error.strerror}", "name another with run.folder=FOLDER")) from None
    if not os.access(folder, os.W_OK):
        raise Failed(Fault("run.folder", f"{folder} cannot be written to", "name another with run.folder=FOLDER"))
    _must_know_size(world)
    setup = plan_for(settings).setup
    trained = setup.lora_parameters if model_of(settings).lora else setup.shape.parameters
    needed, free = copies * trained * BYTES_A_TRAINED_WEIGHT / 1e9, shutil.disk_usage(folder).free / 1e9
    if needed > free:
        what = f"{copies} checkpoints take {needed:.0f} GB and {folder} has {free:.0f} GB free"
        raise Failed(Fault("run.folder", what, "name a larger disk with run.folder=FOLDER, or keep fewer with backend.keep_checkpoints"))
    return f"room for {copies} of {needed / copies:.2g} GB in {folder} ({free:.0f} GB free)"


def _store(world: World) -> str:
    if server := card_server_of(world.settings.store):
        server.check()
        return server.address
    store = open_store(world.settings.store.url)
    store.close()
    return store.name
