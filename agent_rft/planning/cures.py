"""Changes of settings that may make a failing run fit, from the cheapest to the dearest, and the search among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from agent_rft.contracts.training import Lora
from agent_rft.planning.setup import Setup
from agent_rft.training.nemo.layout import COLOCATED_UTILIZATION, OWN_UTILIZATION

SHOWN = 3
"""So many ways out, each of another kind."""
AT_ONCE = 3
"""So many changes are tried together at most."""
LARGE_GPU, LARGE_HOST = 141.0, 2000.0
SCORED_TOKENS = 512
"""At once by dedicated_vllm: fewer would hardly take less memory."""
INT4_CHECKPOINT = "CHECKPOINT"
"""To be put in by who types it."""
DEFAULT_LORA = Lora(32, 64, ("q_proj", "k_proj", "v_proj", "o_proj"))
"""What model.lora.rank=32 means where the rest is not said."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Settings to type, and the run with them."""

    settings: tuple[str, ...]
    setup: Setup
    price: int
    """0: free. 1: slower. 2: another run. 3: more machines."""
    kind: str
    hint: str = ""

    @property
    def words(self) -> str:
        return " ".join(self.settings) + (f" ({self.hint})" if self.hint else "")


def ways_out(setup: Setup, fits: Callable[[Setup], bool]) -> tuple[Change, ...]:
    """The cheapest changes that make it fit, as few at once as possible; of each kind the mildest."""
    for together in range(1, AT_ONCE + 1):
        found: dict[str, Change] = {}
        for change in sorted(_combined(setup, together), key=lambda change: change.price):
            if change.kind not in found and fits(change.setup):
                found[change.kind] = change
            if len(found) == SHOWN:
                break
        if found:
            return tuple(found.values())
    return ()


def _combined(setup: Setup, together: int) -> Iterator[Change]:
    """Chains of changes of different kinds, each made to what the one before left."""
    for first in _changes(setup):
        if together == 1:
            yield first
            continue
        for then in _combined(first.setup, together - 1):
            if first.kind < then.kind:  # each set of kinds in one order only
                yield Change(
                    settings=first.settings + then.settings,
                    setup=then.setup,
                    price=first.price + then.price,
                    kind=f"{first.kind}, {then.kind}",
                    hint=", ".join(filter(None, (first.hint, then.hint))),
                )


def _changes(setup: Setup) -> Iterator[Change]:
    """Single changes, the mildest of each kind first."""
    if setup.model.lora is None:
        model = msgspec.structs.replace(setup.model, lora=DEFAULT_LORA)
        yield _change(setup, "lora", 2, "model.lora.rank=32", model=model)
    if setup.engine == "local":
        yield from _local_changes(setup)
    elif setup.layout.workers == "megatron":
        yield from _nemo_changes(setup)
        yield from _reference_changes(setup)
    yield from _cluster_changes(setup)


def _change(setup: Setup, kind: str, price: int, words: str, hint: str = "", **replaced: object) -> Change:
    return Change(settings=tuple(words.split()), setup=msgspec.structs.replace(setup, **replaced), price=price, kind=kind, hint=hint)


def _local_changes(setup: Setup) -> Iterator[Change]:
    tokens, longest = setup.algorithm.micro_batch_tokens, setup.limits.max_trajectory_tokens
    while (tokens := tokens // 2) >= longest:
        algorithm = msgspec.structs.replace(setup.algorithm, micro_batch_tokens=tokens)
        yield _change(setup, "micro-batch", 1, f"algorithm.micro_batch_tokens={tokens}", algorithm=algorithm)
    rollouts = min(setup.rollouts, setup.in_flight)
    while (rollouts := rollouts // 2) >= 8:
        yield _change(setup, "rollouts", 1, f"backend.rollouts_in_flight={rollouts}", in_flight=rollouts)
    if setup.model.lora and setup.model.device == "cuda" and setup.model.dtype == "float32":
        model = msgspec.structs.replace(setup.model, dtype="bfloat16")
        yield _change(setup, "dtype", 1, "model.dtype=bfloat16", model=model)


def _nemo_changes(setup: Setup) -> Iterator[Change]:
    layout, key = setup.layout, "backend.nemo"
    parallel, generation = layout.parallel, layout.generation
    most = COLOCATED_UTILIZATION if generation.colocated else OWN_UTILIZATION
    shares = [step / 20 for step in range(4, 20) if step / 20 <= most]
    for share in sorted(shares, key=lambda share: abs(share - generation.memory_utilization)):
        changed = msgspec.structs.replace(generation, memory_utilization=share)
        yield _laid_out(setup, "utilization", 0, f"{key}.generation.memory_utilization={share:g}", generation=changed)
    if not layout.activation_checkpointing:
        yield _laid_out(setup, "activations", 1, f"{key}.activation_checkpointing=true", activation_checkpointing=True)
    if layout.micro_batch > 1:
        yield _laid_out(setup, "micro-batch", 1, f"{key}.micro_batch=1", micro_batch=1)
    if not layout.optimizer_on_cpu:
        yield _laid_out(setup, "optimizer", 1, f"{key}.optimizer_on_cpu=true", optimizer_on_cpu=True)
    for tensor in (2, 4, 8, 1):  # never over the edge of a node: it talks in every layer
        if tensor not in (parallel.tensor, generation.tensor) and tensor <= layout.cluster.gpus_per_node:
            words = f"{key}.tensor={tensor} {key}.generation.tensor={tensor}"
            cut = msgspec.structs.replace(parallel, tensor=tensor), msgspec.structs.replace(generation, tensor=tensor)
            yield _laid_out(setup, "tensor", 1, words, parallel=cut[0], generation=cut[1])
    for name in ("context", "pipeline"):
        for ways in (2, 4):
            if ways > getattr(parallel, name):
                changed = msgspec.structs.replace(parallel, **{name: ways})
                yield _laid_out(setup, name, 1, f"{key}.{name}={ways}", parallel=changed)


def _reference_changes(setup: Setup) -> Iterator[Change]:
    reference = setup.layout.reference

    def change(kind: str, price: int, words: str, hint: str = "", **replaced: object) -> Change:
        changed = msgspec.structs.replace(reference, **replaced)
        return _laid_out(setup, f"reference {kind}", price, words, hint, reference=changed)

    if setup.model.lora and reference.engine != "adapter_off":
        yield change("engine", 0, "reference.engine=adapter_off", engine="adapter_off")
    if reference.engine == "adapter_off":
        yield change("engine", 1, "reference.engine=builtin", engine="builtin")
    now = reference.weights if reference.engine == "dedicated_vllm" else "bfloat16"
    price, words = 1 if reference.dedicated else 3, "reference.engine=dedicated_vllm reference.weights="
    if now == "bfloat16":
        yield change("weights", price, f"{words}fp8", engine="dedicated_vllm", weights="fp8")
    if now != "int4" or not reference.path:
        words, hint = f"{words}int4 reference.path={INT4_CHECKPOINT}", f"{INT4_CHECKPOINT}: the base in int4, a folder or an id"
        yield change("weights", price, words, hint, engine="dedicated_vllm", weights="int4", path=INT4_CHECKPOINT)
    if reference.engine == "dedicated_vllm" and reference.max_batched_tokens > SCORED_TOKENS:
        words = f"reference.max_batched_tokens={SCORED_TOKENS}"
        yield change("batch", 0, words, max_batched_tokens=SCORED_TOKENS)
    if reference.dedicated and reference.gpu_memory_gb < LARGE_GPU:
        yield change("card", 3, f"reference.gpu_memory_gb={LARGE_GPU:g}", "a larger card for it", gpu_memory_gb=LARGE_GPU)


def _cluster_changes(setup: Setup) -> Iterator[Change]:
    cluster = setup.layout.cluster
    on_gpus = setup.model.device == "cuda"
    if on_gpus and setup.engine == "nemo":
        for price, gpus in enumerate((2, 4, 8), start=3):
            if gpus > cluster.gpus_per_node:
                yield _with_cluster(setup, "GPUs", price, f"cluster.gpus_per_node={gpus}", gpus_per_node=gpus)
        for price, times in enumerate((2, 4, 8), start=4):
            yield _with_cluster(setup, "nodes", price, f"cluster.nodes={times * cluster.nodes}", nodes=times * cluster.nodes)
    if on_gpus and cluster.gpu_memory_gb < LARGE_GPU:
        yield _with_cluster(setup, "cards", 4, f"cluster.gpu_memory_gb={LARGE_GPU:g}", "larger cards", gpu_memory_gb=LARGE_GPU)
    if cluster.host_memory_gb < LARGE_HOST:
        yield _with_cluster(setup, "host", 4, f"cluster.host_memory_gb={LARGE_HOST:g}", "a larger machine", host_memory_gb=LARGE_HOST)


def _laid_out(setup: Setup, kind: str, price: int, words: str, hint: str = "", **replaced: object) -> Change:
    return _change(setup, kind, price, words, hint, layout=msgspec.structs.replace(setup.layout, **replaced))


def _with_cluster(setup: Setup, kind: str, price: int, words: str, hint: str = "", **replaced: object) -> Change:
    return _laid_out(setup, kind, price, words, hint, cluster=msgspec.structs.replace(setup.layout.cluster, **replaced))
