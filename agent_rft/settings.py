"""The one settings tree. Config stops here: what goes further inward is plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.contracts.guards import Action
from agent_rft.contracts.jobcards import DEFAULT_STORE
from agent_rft.guards.limits import GUARDS
from agent_rft.training.guards import group_size_warning

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Unknown keys are refused; nothing changes after the door."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LimitSettings(Section):
    max_turns: Positive = 16
    max_tool_calls: Positive = 12
    max_trajectory_tokens: Positive = 4096
    max_turn_tokens: Positive = 512
    max_seconds: Annotated[float, Field(gt=0)] = 600.0


class TaskSettings(Section):
    train: str
    """JSONL file of training rows."""
    val: str
    grader: str | None = None
    """The grader's JSON where it comes with the data; grader.file otherwise."""
    system_prompt: str = ""
    """Put before every conversation; empty for none."""
    limits: LimitSettings = LimitSettings()
    service: str = ""
    """Whose production cards the rows are held against before a training and before a release; empty: nobody's, but those of the
    releases that an agent is in."""


class LoraSettings(Section):
    rank: Positive = 32
    alpha: Positive = 64
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class ModelSettings(Section):
    path: str
    """A folder, or a Hugging Face id."""
    lora: LoraSettings | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    sampler: Literal["batched", "vllm"] = "batched"
    threads: Positive | None = None


class AlgorithmSettings(Section):
    """The A6 numbers. Outside the known ranges they work, with a warning."""

    group_size: Annotated[int, Field(ge=2)] = 8
    compute_multiplier: Positive = 1
    batch_size: Positive = 16
    epochs: Positive = 2
    max_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    kl_coef: Annotated[float, Field(ge=0)] = 0.01
    clip_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    call_cost: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    micro_batch_tokens: Positive = 8192


class WatchSettings(Section):
    """One guard or detector, where it is to differ from its own limit or action; docs/guards.md lists them."""

    at: Annotated[float, Field(ge=0)] | None = None
    action: Annotated[Action | None, BeforeValidator(lambda given: "off" if given is False else given)] = None
    """`off`, unquoted, is YAML's word for false."""


def _known_guard(name: str) -> str:
    if name not in GUARDS:
        raise ValueError(f"no such guard; {did_you_mean(name, GUARDS)}")
    return name


class GuardSettings(Section):
    max_infra_rate: Share = 0.01
    infra_window_calls: Positive = 1000
    max_kl: Annotated[float, Field(gt=0)] = 0.5
    holdout_graders: tuple[str, ...] = ()
    """Asked at validations and never trained against: one of ours, NAME@VERSION, or FILE.json."""
    watch: dict[Annotated[str, AfterValidator(_known_guard)], WatchSettings] = {}
    """By guard: {early_stop: {at: 0.3, action: stop}}."""
    human_ceiling: Share | None = None
    """What a person's answers to the validation rows are graded; better than that is no skill. null: nobody measured it."""
    audit_every: Annotated[int, Field(ge=0)] = 10
    """Steps between random samples of rollouts for a reviewer; 0: none."""
    audit_sample: Positive = 4

    @field_validator("watch")
    @classmethod
    def some_cannot_be_off(cls, watch: dict[str, WatchSettings]) -> dict[str, WatchSettings]:
        kept = [name for name, wanted in watch.items() if wanted.action in ("off", "warn") and not GUARDS[name].can_be_off]
        if kept:
            raise ValueError(f"{' and '.join(kept)} cannot be {watch[kept[0]].action}: nothing is left to go on with after what they find")
        return watch


class PriorSettings(Section):
    prompts: Positive = 50
    rollouts: Annotated[int, Field(ge=2)] = 5
    override: bool = False
    """Train although the prior check says no go."""
    source: Literal["run", "recorded"] = "run"
    """run: measured at the start of each training. recorded: `make prior` has measured it; on large models that is dear."""


class EvaluationSettings(Section):
    samples_per_row: Positive = 2
    val_samples: Positive = 1
    """Tries a row gets at each validation during training."""
    every: Positive = 10
    """Steps between validations."""


class GenerationSettings(Section):
    tensor: Positive = 1
    memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.5
    colocated: bool = True
    nodes: Positive | None = None
    gpus_per_node: Positive | None = None
    asynchronous: bool = False


class NemoSettings(Section):
    """How NeMo RL lays the run out; what each key means is told in contracts/layouts.py."""

    workers: Literal["megatron", "cpu"] = "megatron"
    tensor: Positive = 1
    pipeline: Positive = 1
    context: Positive = 1
    micro_batch: Positive = 1
    activation_checkpointing: bool = True
    optimizer_on_cpu: bool = False
    generation: GenerationSettings = GenerationSettings()
    environment_actors: Positive = 2
    loggers: tuple[Literal["wandb", "tensorboard", "mlflow", "swanlab"], ...] = ()
    overrides: dict[str, Any] = {}
    """NeMo RL's own keys, dotted (policy.megatron_cfg.optimizer.weight_decay: 0.01), set last."""


class BackendSettings(Section):
    name: Literal["local", "nemo"] = "local"
    rollouts_in_flight: Positive = 128
    checkpoint_every: Positive = 20
    keep_checkpoints: Positive = 2
    nemo: NemoSettings | None = None
    """With name nemo; backend=nemo or backend=nemo_cpu fills it."""


class ClusterSettings(Section):
    address: str | None = None
    """A running Ray cluster's address; null starts one here for the time of the run."""
    nodes: Positive = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    gpu_memory_gb: Annotated[float, Field(gt=0)] = 80.0
    host_memory_gb: Annotated[float, Field(gt=0)] = 2000.0
    peak_tflops: Annotated[float, Field(gt=0)] = 989.0
    training_mfu: Annotated[float, Field(gt=0, le=1)] = 0.35
    decode_tokens_per_second: Annotated[float, Field(gt=0)] = 400.0
    gpu_hour_price: Annotated[float, Field(ge=0)] = 0.0


class ReferenceSettings(Section):
    engine: Literal["builtin", "dedicated_worker", "dedicated_vllm", "adapter_off"] = "builtin"
    weights: Literal["bfloat16", "fp8", "int4"] = "bfloat16"
    path: str | None = None
    resource: str = "reference_gpu"
    gpu_memory_gb: Annotated[float, Field(gt=0)] = 80.0
    max_batched_tokens: Positive = 512

    @model_validator(mode="after")
    def other_engines_have_the_base_itself(self) -> Self:
        """Weights of another kind are dedicated_vllm's alone: what a model names for it (conf/model) is nothing to the others."""
        if self.engine == "dedicated_vllm" or (self.weights == "bfloat16" and self.path is None):
            return self
        return self.model_copy(update={"weights": "bfloat16", "path": None})


class FaultSettings(Section):
    """Faults to try the guards with. All zero in earnest."""

    failure_rate: Share = 0.0
    hang_rate: Share = 0.0
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0


class EmbeddingSettings(Section):
    model: str | None = None
    """A sentence-transformers model's folder or id."""
    url: str | None = None
    """An OpenAI-compatible server: its /v1/embeddings is called."""
    url_model: str = "default"


class ToolSettings(Section):
    url: str | None = None
    """A running tool server; None starts our own for the time of the run."""
    corpus: str
    """Folder of documents that our own server serves."""
    retriever: Literal["lexical", "embeddings"] = "lexical"
    embeddings: EmbeddingSettings = EmbeddingSettings()
    max_output_tokens: Positive = 512
    timeout_seconds: Annotated[float, Field(gt=0)] = 20.0
    retries: Annotated[int, Field(ge=0)] = 4
    concurrency: Positive = 512
    faults: FaultSettings = FaultSettings()
    notebook: bool = False
    """Offers remember and recall besides: notes that an agent keeps for the length of a task."""
    outbox: str | None = None
    """A folder; publish, which puts a note into it, is then offered besides. In production only."""
    high_impact: tuple[str, ...] | None = None
    """Tools whose calls wait for a person; null: all that change something."""


class JudgeSettings(Section):
    """Where model graders ask. The key is in the environment, JUDGE_API_KEY."""

    url: str | None = None
    """An OpenAI-compatible server, up to /v1."""
    models: dict[str, str] = {}
    """What stands in for a grader's model there: {gpt-4.1: Qwen/Qwen2.5-72B-Instruct}."""
    cache: str | None = None
    """A folder that keeps replies."""


class GraderSettings(Section):
    name: str = "numeric"
    """One of ours, or a version that is registered in the store: numeric@2."""
    options: dict[str, Any] = {}
    """Of one of ours; a registered version has its own."""
    file: str | None = None
    """A grader's JSON, instead of a name."""
    allow_inactive: bool = False
    """Train with a grader that is not active; every card of the run says so."""
    judge: JudgeSettings = JudgeSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    """For text_similarity by cosine."""
    pass_at: Share = 1.0
    """From which reward on a try counts as a success."""


class CallSettings(Section):
    """Of each tenant and tool, in production."""

    in_flight: Positive = 16
    queue: Annotated[int, Field(ge=0)] = 64
    """Calls that wait for a place; one more is told to come again."""
    per_minute: Positive = 1200


class ServingSettings(Section):
    mode: Literal["training", "production"] = "training"
    """training: one bearer, bursts queue. production: tools are called by tenants' keys, within limits, and some wait for a person."""
    calls: CallSettings = CallSettings()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    grade_seconds: Annotated[float, Field(gt=0)] = 150.0
    """By when a grade is there, or the reason why there is none. A python grader has its 120 seconds in this."""
    grades_in_flight: Positive = 256
    """Gradings under way at once; whoever asks for more is told to come again."""


class UpstreamSettings(Section):
    """A model server that the gateway asks."""

    name: str
    url: str
    """OpenAI-compatible, up to /v1."""
    model: str
    """What it calls the checkpoint."""
    checkpoint: str
    """Which weights it serves, as agents name them. Several upstreams of one checkpoint are replicas."""
    key_variable: str = ""
    """The environment's variable that holds its key."""
    in_flight: Positive = 64
    queue: Annotated[int, Field(ge=0)] = 128
    connect_seconds: Annotated[float, Field(gt=0)] = 2.0
    total_seconds: Annotated[float, Field(gt=0)] = 120.0


class QuotaSettings(Section):
    """Of each tenant; 0: no limit."""

    requests_per_minute: Annotated[int, Field(ge=0)] = 6000
    tokens_per_day: Annotated[int, Field(ge=0)] = 0
    in_flight: Annotated[int, Field(ge=0)] = 256


class SloSettings(Section):
    """What a tenant was promised."""

    seconds: Annotated[float, Field(gt=0)] = 30.0
    at_least: Share = 0.99
    """The share of turns that are over within these seconds."""
    errors_at_most: Share = 0.01


class AgentRunSettings(Section):
    """Runs of agents: POST /v1/agent/runs."""

    candidate_seconds: Annotated[float, Field(gt=0)] = 30.0
    """That a candidate's model may take over a turn, before the live agent begins in its place."""
    most: Positive = 1000
    """In hand at a time."""
    kept_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """For how long a run that is over can be asked for by its id, and its words stay as they were said. Its card stays, redacted."""
    shadow_waiting: Positive = 200
    """Mirrored runs that may wait for the candidate; then the oldest goes without."""
    shadow_at_once: Positive = 4
    forbidden_words: tuple[str, ...] = ()
    """An answer with one of them is a safety violation."""
    critical: tuple[Literal["leaked", "forbidden_tool", "words"], ...] = ("leaked",)
    """Violations that withdraw a candidate at once."""


class GatewaySettings(Section):
    """Without upstreams there is no gateway."""

    upstreams: tuple[UpstreamSettings, ...] = ()
    quotas: QuotaSettings = QuotaSettings()
    tenant_quotas: dict[str, QuotaSettings] = {}
    slo: SloSettings = SloSettings()
    tenant_slos: dict[str, SloSettings] = {}
    deadline_seconds: Annotated[float, Field(gt=0)] = 120.0
    """For a whole answer; callers may ask for less."""
    body_seconds: Annotated[float, Field(gt=0)] = 10.0
    """By when a request's body has to be there."""
    max_body_bytes: Positive = 4_000_000
    max_answer_bytes: Positive = 16_000_000
    spool: str = "runs/gateway"
    """Folder where answers wait to become job cards, and withdrawals for the store."""
    agents: AgentRunSettings = AgentRunSettings()
    spool_bytes: Positive = 1_000_000_000
    """A full one takes no further requests: no answer is given without its card."""


class ApprovalSettings(Section):
    minutes: Annotated[float, Field(gt=0)] = 60.0
    """How long a call waits for a person, and how long what they said is good."""


class WebhookSettings(Section):
    url: str | None = None
    """Who is told of what becomes of releases, and of alarms; the secret that signs it is in the environment, RFT_WEBHOOK_SECRET."""

    @model_validator(mode="after")
    def is_an_address(self) -> Self:
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"release.webhook.url={self.url} is no address of the web: https://...")
        return self


class ReleaseSettings(Section):
    grader: str | None = None
    """What live sessions are graded by: one of ours, NAME@VERSION, or FILE.json. null: the grader that the recipe trains against."""
    holdout_graders: tuple[str, ...] = ()
    """Others, which no training saw."""
    safety_suite: str = "data/safety/suite.jsonl"
    """The cases of `rft agent check`'s safety report."""
    gradings_per_minute: Positive = 120
    gradings_in_flight: Positive = 8
    most_waiting: Positive = 2000
    """Turns that wait for a grade; beyond them the oldest go without."""
    monitor_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often each service is held against its training and its last week."""
    webhook: WebhookSettings = WebhookSettings()
    policy: dict[str, Any] = {}
    """Rules of releases that are made without rules of their own; docs/release.md lists them."""


class StoreSettings(Section):
    url: str = DEFAULT_STORE
    tenant: str = "default"
    redact: bool = True
    """Addresses, numbers of phones, cards and accounts, ids, keys and passwords are taken out before anything is stored."""
    patterns: dict[str, str] = {}
    """What to take out besides: {CASE_NUMBER: "C-[0-9]{6}"}. For every tenant's cards."""
    tenant_patterns: dict[str, dict[str, str]] = {}
    """What to take out of one tenant's cards only: {acme: {STAFF: "E-[0-9]{6}"}}."""
    ledger: str | None = None
    """Folder of the signing keys and the signed roots; null: beside the store."""


class RunSettings(Section):
    folder: str = "runs"
    id: str | None = None
    """Name of the run's folder; None makes one from recipe, time and seed."""


class Settings(Section):
    recipe: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    task: TaskSettings
    model: ModelSettings
    algorithm: AlgorithmSettings
    backend: BackendSettings
    tools: ToolSettings
    grader: GraderSettings
    serving: ServingSettings
    approvals: ApprovalSettings = ApprovalSettings()
    store: StoreSettings
    gateway: GatewaySettings = GatewaySettings()
    release: ReleaseSettings = ReleaseSettings()
    cluster: ClusterSettings = ClusterSettings()
    reference: ReferenceSettings = ReferenceSettings()
    guards: GuardSettings = GuardSettings()
    prior: PriorSettings = PriorSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def what_changes_something_is_served_in_production(self) -> Self:
        if self.serving.mode == "training" and (self.tools.outbox or self.tools.high_impact):
            what = "tools.outbox and tools.high_impact are for production: in training each rollout would publish in earnest"
            raise ValueError(f"{what}; set serving=production, or leave them out")
        return self

    @model_validator(mode="after")
    def data_may_bring_its_grader(self) -> Self:
        if self.task.grader in (None, self.grader.file):
            return self
        if self.grader.file:
            raise ValueError(f"task.grader={self.task.grader} and grader.file={self.grader.file} are two graders: leave one out")
        return self.model_copy(update={"grader": self.grader.model_copy(update={"file": self.task.grader})})


def validated(tree: dict[str, Any]) -> Settings:
    """The tree as typed settings, or every fault in it at once."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise FaultsFound("the settings have faults:", [_fault(detail) for detail in error.errors()], exit_code=2) from None


def _fault(detail: ErrorDetails) -> Fault:
    path = [part for part in detail["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in path)
    if detail["type"] == "extra_forbidden":
        return Fault(key, "no such key", did_you_mean(str(path[-1]), keys_at(path[:-1])))
    if key == "algorithm.group_size":
        what = f"{detail['input']!r} does not do: a group's mean is the baseline, and one rollout is no group"
        return Fault(key, what, "8 is usual, 4 the least that is stable")
    if detail["type"] == "missing":
        return Fault(key, "is required and missing")
    if detail["type"] == "value_error":
        return Fault(key or "settings", str(detail.get("ctx", {}).get("error", detail["msg"])))
    return Fault(key, f"{detail['msg'][0].lower()}{detail['msg'][1:]}, found {detail['input']!r}")


def keys_at(path: list[Any]) -> list[str]:
    """The keys that a section of the tree knows."""
    section: Any = Settings
    named = False
    for part in path:
        if named:  # of sections by name, any name will do
            named = False
            continue
        field = section.model_fields.get(part) if _is_section(section) else None
        if field is None:
            return []
        named = get_origin(field.annotation) is dict
        section = next((kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_section(kind)), None)
    return list(section.model_fields) if _is_section(section) and not named else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def range_warnings(settings: Settings) -> Iterator[str]:
    """What works but is known to go badly."""
    algorithm = settings.algorithm
    if warning := group_size_warning(algorithm.group_size * algorithm.compute_multiplier):
        yield warning
    if not 0.001 <= algorithm.kl_coef <= 0.05:
        side = "the policy may drift from the reference" if algorithm.kl_coef < 0.001 else "the policy can hardly learn"
        yield f"algorithm.kl_coef is {algorithm.kl_coef:g}, outside 0.001 to 0.05: {side}"
    if settings.model.lora and algorithm.learning_rate > 1e-4:
        yield f"algorithm.learning_rate is {algorithm.learning_rate:g}: above 1e-4 a LoRA run of this kind tends to collapse"
    if algorithm.epochs > 4:
        yield f"algorithm.epochs is {algorithm.epochs}: small data sets are overfitted after 2 to 4"
