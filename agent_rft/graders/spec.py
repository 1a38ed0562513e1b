"""A grader as its JSON says it: OpenAI's and Azure's types unchanged, and ours. Read once, with every fault under its path.

OpenAI's and Azure's: string_check, text_similarity, score_model, label_model, python, multi, endpoint. Ours: numeric,
trajectory, schema, f1_set, code_run, stack. What each key means stands at its field below. `name` may be left out, as
Azure's examples do: it is then the key that the grader has in its multi or stack, else its type.

Where the published documents contradict each other, both sides are read, and one is kept:

- operation `neq` is `ne`;
- the input of string_check and text_similarity may be a list of texts or messages: their texts, a line each;
- the input of a judge may be one text: a single message of the user. A message's content may be a text, a part
  {"type": "input_text", "text"}, or a list of these; images and sound are refused;
- `max_tokens` and `max_completion_tokens` are `max_completions_tokens`;
- `range` is [0, 1] where it is left out;
- a multi's graders may be a list, or one grader: each is then known to the formula by its name.

A key that no document names is refused, with the nearest that one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.graders.formula import FUNCTIONS, NAME, FormulaError, parse_formula
from agent_rft.graders.schema import schema_faults
from agent_rft.graders.spec_reading import Reading, shown
from agent_rft.graders.templating import unusable_variables

MAX_SOURCE_BYTES = 256_000
MAX_RUN_SECONDS = 120.0
ROLES = ("correctness", "process", "safety", "efficiency")
"""The parts of a stack."""

Operation = Literal["eq", "ne", "like", "ilike"]
Metric = Literal["fuzzy_match", "bleu", "gleu", "meteor", "cosine", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]
Criterion = Literal["tools", "evidence", "budget", "redundancy", "parallelism", "stop"]


class _Spec(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    name: str = ""


class StringCheck(_Spec, frozen=True, kw_only=True, tag="string_check"):
    """1 or 0. like: the input contains the reference; ilike: whatever the case."""

    input: str
    reference: str
    operation: Operation


class TextSimilarity(_Spec, frozen=True, kw_only=True, tag="text_similarity"):
    """From 0 to 1, by one of the published measures. All but cosine take texts of up to 50,000 characters."""

    input: str
    reference: str
    evaluation_metric: Metric
    pass_threshold: float | None = None


class JudgeMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    seed: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    max_completions_tokens: int | None = None
    reasoning_effort: str | None = None


class ScoreModel(_Spec, frozen=True, kw_only=True, tag="score_model"):
    """A judge gives a score within the range."""

    input: tuple[JudgeMessage, ...]
    model: str
    range: tuple[float, ...] = (0.0, 1.0)
    pass_threshold: float | None = None
    """In the units of the range."""
    sampling_params: SamplingParams = SamplingParams()
    samples: int = 1
    """Ours: so many answers, whose mean counts."""


class LabelModel(_Spec, frozen=True, kw_only=True, tag="label_model"):
    """A judge gives one of the labels: 1 for a passing one, else 0."""

    input: tuple[JudgeMessage, ...]
    model: str
    labels: tuple[str, ...]
    passing_labels: tuple[str, ...]
    samples: int = 1
    """Ours: so many answers; the share that passes counts."""


class Python(_Spec, frozen=True, kw_only=True, tag="python"):
    """`source` defines grade(sample, item), which returns a number."""

    source: str
    image_tag: str | None = None
    pass_threshold: float | None = None


class Endpoint(_Spec, frozen=True, kw_only=True, tag="endpoint"):
    """Azure's: {sample, item, trace_id} is posted to `url`, which answers {score}."""

    url: str
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    rate_limit: float | None = None
    """Requests a second."""
    pass_threshold: float | None = None
    """In the endpoint's own units."""
    range: tuple[float, ...] = (0.0, 1.0)
    """Ours: what its scores lie in."""


class Multi(_Spec, frozen=True, kw_only=True, tag="multi"):
    """Several graders and a formula over their keys."""

    graders: dict[str, GraderSpec]
    calculate_output: str
    pass_threshold: float | None = None


class Numeric(_Spec, frozen=True, kw_only=True, tag="numeric"):
    """`sample.output_text` is the number of `item.reference_answer`, in any format."""

    tolerance: float = 0.001
    """The share of the reference that an answer may be off, for half the reward."""
    use_row_tolerance: bool = False
    """The row's `expected.tolerance_rel` in its place."""


class Trajectory(_Spec, frozen=True, kw_only=True, tag="trajectory"):
    """How the agent went about it, from its calls. The weighted mean of the criteria that are set and that the row has a say in."""

    required_tools: tuple[str, ...] | None = None
    """Left out: the row's `expected.must_use_tools`. An empty list asks for none."""
    evidence: bool = True
    """The row's `expected.evidence_path` was read before the answer."""
    evidence_tool: str = "read"
    evidence_argument: str = "path"
    """A call of this tool with the path in this argument, answered without an error, is reading it."""
    max_calls: int | None = None
    """The budget: with more, max_calls over calls."""
    max_redundant: int | None = None
    """Calls that repeat an earlier one, name and arguments alike. With more, the share of the calls beyond it is lost."""
    min_parallelism: float | None = None
    """Mean number of calls in a turn that calls at all. With fewer, the share that was reached."""
    max_calls_after_evidence: int | None = None
    """When to stop: with more, or with evidence that was never read, 0. For rows with evidence."""
    weights: dict[Criterion, float] = msgspec.field(default_factory=dict[Criterion, float])
    """1 each where they are left out."""
    pass_threshold: float | None = None


class Schema(_Spec, frozen=True, kw_only=True, tag="schema"):
    """1 where the output is JSON that fits the JSON Schema, else 0. Its regular expressions are RE2's: no look-around, no
    back-references."""

    schema: dict[str, Any]


class F1Set(_Spec, frozen=True, kw_only=True, tag="f1_set"):
    """F1 of two sets: a JSON list, or a line each."""

    input: str
    reference: str
    pass_threshold: float | None = None


class CodeRun(_Spec, frozen=True, kw_only=True, tag="code_run"):
    """The answer is a program, run in the sandbox on each of the row's tests: the share that it passes."""

    language: str = "python"
    tests_key: str = "tests"
    """Of the item: a list of {"call", "args", "expected"} or {"stdin", "expected"}."""
    timeout: float = 10.0
    """Seconds a test."""
    seconds_in_all: float = 120.0
    pass_threshold: float | None = None


class _Weight(msgspec.Struct, frozen=True, kw_only=True):
    weight: float | None = None
    """1 where it is left out. Not beside a formula."""


class StackPart(_Weight, frozen=True, kw_only=True):
    grader: GraderSpec


class Stack(_Spec, frozen=True, kw_only=True, tag="stack"):
    """Several graders, each in its role: the weighted mean, or a formula over the roles, unless a gate is shut."""

    correctness: StackPart
    process: StackPart | None = None
    safety: StackPart | None = None
    efficiency: StackPart | None = None
    calculate_output: str | None = None
    gates: dict[Literal["correctness", "process", "safety", "efficiency"], float] = msgspec.field(default_factory=dict[Any, float])
    """Role and the least reward it must reach, else the whole is 0. Safety at 0 makes the whole 0 with or without this."""
    pass_threshold: float | None = None

    def parts(self) -> dict[str, StackPart]:
        held = {role: cast(StackPart | None, getattr(self, role)) for role in ROLES}
        return {role: part for role, part in held.items() if part is not None}


GraderSpec = (
    StringCheck | TextSimilarity | ScoreModel | LabelModel | Python | Multi | Endpoint
    | Numeric | Trajectory | Schema | F1Set | CodeRun | Stack
)  # fmt: skip

TYPES: dict[str, type[Any]] = {str(each.__struct_config__.tag): each for each in GraderSpec.__args__}


def read_spec(value: object, where: str = "grader") -> GraderSpec:
    """Raises FaultsFound. What it returns, as builtins, reads back as the same."""
    reading = _SpecReading()
    spec = reading.grader(value, where)
    if reading.faults:
        raise FaultsFound(f"{where} is no usable grader", reading.faults)
    return spec


def flags_of(found: FaultsFound) -> dict[str, str]:
    """The same faults in the words of OpenAI's error flags, for who asks to run a grader that cannot be read."""
    flags: dict[str, list[str]] = {}
    for fault in found.faults:
        in_formula = fault.where.endswith(".calculate_output")
        flag = "formula_parse_error" if in_formula else "invalid_variable_error" if "{{" in fault.what else "other_error"
        flags.setdefault(flag, []).append(str(fault))
    return {flag: "; ".join(whats) for flag, whats in flags.items()}


class _SpecReading(Reading):
    def value(self, shape: Any, value: object, where: str) -> Any:
        return self.grader(value, where) if shape == GraderSpec else super().value(shape, value, where)

    def grader(self, value: object, where: str, name: str = "", within: str = "") -> Any:
        """None where its type is not known. `within`: the type of the grader that it is a part of."""
        if not isinstance(value, dict):
            return self.wrong(where, value, "an object")
        held = cast(dict[str, Any], value)
        kind = held.get("type")
        if not isinstance(kind, str) or kind not in TYPES:
            what = f"{shown(kind)} is no type of grader" if "type" in held else "is missing"
            return self.fault(f"{where}.type", what, did_you_mean(str(kind), TYPES))
        if kind == within:
            return self.fault(f"{where}.type", f"a {kind} in a {kind}", "they do not nest")
        spec = self.struct(TYPES[kind], self._unified(kind, held, where, name), where)
        self.also(CHECKS.get(TYPES[kind], _nothing)(spec, where))
        return spec

    def mapping(self, shape: Any, keys: Any, value: object, where: str) -> dict[str, Any]:
        """A multi's graders are named by their keys, where they have no name."""
        if shape != GraderSpec or not isinstance(value, dict):
            return super().mapping(shape, keys, value, where)
        return {key: self.grader(each, f"{where}.{key}", key, "multi") for key, each in cast(dict[str, Any], value).items()}

    def struct(self, shape: type[msgspec.Struct], value: object, where: str) -> Any:
        """A stack's part is named by its role, where it has no name."""
        if shape is not StackPart or not isinstance(value, dict) or "grader" not in value:
            return super().struct(shape, value, where)
        held = cast(dict[str, Any], value)
        grader = self.grader(held["grader"], f"{where}.grader", where.rpartition(".")[2], "stack")
        rest = super().struct(_Weight, {key: each for key, each in held.items() if key != "grader"}, where)
        return StackPart(grader=grader, weight=rest.weight)

    def _unified(self, kind: str, held: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
        """The same grader, said in one way."""
        one = {**held, "name": held.get("name") or name or kind} if isinstance(held.get("name", ""), str | None) else dict(held)
        if kind == "string_check" and held.get("operation") == "neq":
            one["operation"] = "ne"
        if kind in ("string_check", "text_similarity") and isinstance(held.get("input"), list):
            one["input"] = self._text(held["input"], f"{where}.input")
        if kind in ("score_model", "label_model") and "input" in held:
            one["input"] = self._messages(held["input"], f"{where}.input")
        if kind == "score_model" and isinstance(held.get("sampling_params"), dict):
            one["sampling_params"] = self._sampling(held["sampling_params"], f"{where}.sampling_params")
        if kind == "multi":
            one |= _by_name(held.get("graders"))
        return one

    def _messages(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        return [self._message(each, f"{where}[{at}]") for at, each in enumerate(value)] if isinstance(value, list | tuple) else value

    def _message(self, value: Any, where: str) -> Any:
        if not isinstance(value, dict) or "content" not in value:
            return value
        kept = {key: each for key, each in cast(dict[str, Any], value).items() if (key, each) != ("type", "message")}
        return {**kept, "content": self._text(value["content"], f"{where}.content")}

    def _text(self, value: Any, where: str) -> Any:
        """The text of a message, of a part of one, or of several, a line each."""
        if isinstance(value, list):
            texts = [self._text(each, f"{where}[{at}]") for at, each in enumerate(cast(list[Any], value))]
            return "\n".join(text for text in texts if isinstance(text, str))
        if not isinstance(value, dict):
            return value if isinstance(value, str) else self._not_text(value, where)
        held = cast(dict[str, Any], value)
        inner = held.get("content") if "content" in held else held.get("text")
        return self._text(inner, where) if inner is not None else self._not_text(held.get("type", held), where)

    def _not_text(self, value: Any, where: str) -> str:
        self.fault(where, f"{shown(value)} is not a text", "texts alone are graded")
        return ""

    def _sampling(self, held: Mapping[str, Any], where: str) -> dict[str, Any]:
        said = [key for key in ("max_completions_tokens", "max_completion_tokens", "max_tokens") if key in held]
        if len(said) > 1:
            self.fault(f"{where}.{said[1]}", f"says the same as {said[0]}", "keep one of them")
        rest = {key: each for key, each in held.items() if key not in said}
        return {**rest, "max_completions_tokens": held[said[0]]} if said else rest


def _by_name(graders: Any) -> dict[str, Any]:
    """A list of graders, or a single one, as the mapping that a formula can speak of."""
    if isinstance(graders, dict) and isinstance(graders.get("type"), str):
        graders = [graders]
    if not isinstance(graders, list):
        return {}
    names = [each.get("name") if isinstance(each, dict) else None for each in cast(list[Any], graders)]
    return {"graders": {str(name or f"grader_{at}"): each for at, (name, each) in enumerate(zip(names, graders, strict=True))}}


# --- what one field alone cannot tell -------------------------------------------------------------------------------


def _nothing(spec: Any, where: str) -> Iterator[Fault]:
    yield from ()


def _templates(where: str, **texts: str) -> Iterator[Fault]:
    for key, text in texts.items():
        for path in unusable_variables(text):
            yield Fault(f"{where}.{key}", f"{{{{{path}}}}} can have no value", "{{item.key}} or {{sample.key}}, with .key and [0] after it")


def _numeric(spec: Numeric, where: str) -> Iterator[Fault]:
    yield from _share(where, "tolerance", spec.tolerance)


def _share(where: str, key: str, value: float | None) -> Iterator[Fault]:
    if value is not None and not 0 <= value <= 1:
        yield Fault(f"{where}.{key}", f"{value:g} is not from 0 to 1")


def _two_texts(spec: StringCheck | TextSimilarity | F1Set, where: str) -> Iterator[Fault]:
    yield from _templates(where, input=spec.input, reference=spec.reference)
    yield from _share(where, "pass_threshold", None if isinstance(spec, StringCheck) else spec.pass_threshold)


def _judge(spec: ScoreModel | LabelModel, where: str) -> Iterator[Fault]:
    if not spec.input:
        yield Fault(f"{where}.input", "is empty", "one message at least")
    for at, message in enumerate(spec.input):
        yield from _templates(f"{where}.input[{at}]", content=message.content)
    if not spec.model.strip():
        yield Fault(f"{where}.model", "is empty", "the judge's name")
    if spec.samples < 1:
        yield Fault(f"{where}.samples", f"{spec.samples} is below 1")


def _score_model(spec: ScoreModel, where: str) -> Iterator[Fault]:
    yield from _judge(spec, where)
    if len(spec.range) != 2 or spec.range[0] >= spec.range[1]:
        yield Fault(f"{where}.range", f"{list(spec.range)} is no range", "[lowest, highest]")
    elif spec.pass_threshold is not None and not spec.range[0] <= spec.pass_threshold <= spec.range[1]:
        yield Fault(f"{where}.pass_threshold", f"{spec.pass_threshold:g} is outside of the range {list(spec.range)}")
    tokens = spec.sampling_params.max_completions_tokens
    if tokens is not None and tokens < 1:
        yield Fault(f"{where}.sampling_params.max_completions_tokens", f"{tokens} is below 1")


def _label_model(spec: LabelModel, where: str) -> Iterator[Fault]:
    yield from _judge(spec, where)
    if not spec.labels:
        yield Fault(f"{where}.labels", "is empty", "what the judge may answer")
    for label in sorted({label for label in spec.labels if spec.labels.count(label) > 1}):
        yield Fault(f"{where}.labels", f"{label!r} stands there twice")
    if not spec.passing_labels:
        yield Fault(f"{where}.passing_labels", "is empty", "with none, nothing can ever pass")
    for at, label in enumerate(spec.passing_labels):
        if spec.labels and label not in spec.labels:
            yield Fault(f"{where}.passing_labels[{at}]", f"{label!r} is none of the labels", did_you_mean(label, spec.labels))


def _python(spec: Python, where: str) -> Iterator[Fault]:
    if not spec.source.strip():
        yield Fault(f"{where}.source", "is empty", "it defines grade(sample, item)")
    if (size := len(spec.source.encode(errors="replace"))) >= MAX_SOURCE_BYTES:
        yield Fault(f"{where}.source", f"{size} bytes", f"less than {MAX_SOURCE_BYTES}")


def _endpoint(spec: Endpoint, where: str) -> Iterator[Fault]:
    if not spec.url.startswith(("https://", "http://")):
        yield Fault(f"{where}.url", f"{shown(spec.url)} is no address", "it begins with https:// or http://")
    if len(spec.range) != 2 or spec.range[0] >= spec.range[1]:
        yield Fault(f"{where}.range", f"{list(spec.range)} is no range", "[lowest, highest]")
    if spec.rate_limit is not None and spec.rate_limit <= 0:
        yield Fault(f"{where}.rate_limit", f"{spec.rate_limit:g} is not above 0", "requests a second")


def _multi(spec: Multi, where: str) -> Iterator[Fault]:
    if not spec.graders:
        yield Fault(f"{where}.graders", "is empty", "one grader at least")
    for key in spec.graders:
        if not NAME.fullmatch(key) or key in FUNCTIONS:
            yield Fault(f"{where}.graders.{key}", "is no name that a formula can use", "letters, digits and _, and none of its functions")
    yield from _formula(spec.calculate_output, list(spec.graders), where)
    yield from _share(where, "pass_threshold", spec.pass_threshold)


def _formula(text: str, names: Sequence[str], where: str) -> Iterator[Fault]:
    try:
        parse_formula(text, names)
    except FormulaError as error:
        yield Fault(f"{where}.calculate_output", error.what, error.cure)


def _trajectory(spec: Trajectory, where: str) -> Iterator[Fault]:
    set_ones = criteria(spec)
    for key in ("max_calls", "max_redundant", "max_calls_after_evidence"):
        if (value := cast(int | None, getattr(spec, key))) is not None and value < 0:
            yield Fault(f"{where}.{key}", f"{value} is below 0")
    if spec.min_parallelism is not None and spec.min_parallelism < 1:
        yield Fault(f"{where}.min_parallelism", f"{spec.min_parallelism:g} is below 1")
    if not set_ones:
        yield Fault(
            where, "asks for nothing", "required_tools, evidence, max_calls, max_redundant, min_parallelism or max_calls_after_evidence"
        )
    for key, weight in spec.weights.items():
        if key not in set_ones:
            yield Fault(f"{where}.weights.{key}", "is not asked for", did_you_mean(key, set_ones))
        elif weight <= 0:
            yield Fault(f"{where}.weights.{key}", f"{weight:g} is not above 0")
    yield from _share(where, "pass_threshold", spec.pass_threshold)


def criteria(spec: Trajectory) -> dict[str, float]:
    """What is asked for, with its weight."""
    asked: dict[Criterion, bool] = {
        "tools": spec.required_tools != (),
        "evidence": spec.evidence,
        "budget": spec.max_calls is not None,
        "redundancy": spec.max_redundant is not None,
        "parallelism": spec.min_parallelism is not None,
        "stop": spec.max_calls_after_evidence is not None,
    }
    return {key: spec.weights.get(key, 1.0) for key, wanted in asked.items() if wanted}


def _schema(spec: Schema, where: str) -> Iterator[Fault]:
    for path, what in schema_faults(spec.schema):
        yield Fault(f"{where}.schema{path}", what)


def _code_run(spec: CodeRun, where: str) -> Iterator[Fault]:
    for key in ("timeout", "seconds_in_all"):
        if not 0 < (seconds := cast(float, getattr(spec, key))) <= MAX_RUN_SECONDS:
            yield Fault(f"{where}.{key}", f"{seconds:g} is not from 0 to {MAX_RUN_SECONDS:g} seconds")
    yield from _share(where, "pass_threshold", spec.pass_threshold)


def _stack(spec: Stack, where: str) -> Iterator[Fault]:
    parts = spec.parts()
    weights = {role: part.weight for role, part in parts.items() if part.weight is not None}
    for role, weight in weights.items():
        if weight < 0:
            yield Fault(f"{where}.{role}.weight", f"{weight:g} is below 0")
        elif spec.calculate_output is not None:
            yield Fault(f"{where}.{role}.weight", "has no say beside calculate_output", "leave one of them out")
    if len(weights) == len(parts) and not any(weights.values()):
        yield Fault(where, "every weight is 0", "one above 0 at least")
    if spec.calculate_output is not None:
        yield from _formula(spec.calculate_output, list(parts), where)
    for role, least in spec.gates.items():
        if role not in parts:
            yield Fault(f"{where}.gates.{role}", "is no part of this stack", did_you_mean(role, parts))
        elif not 0 < least <= 1:
            yield Fault(f"{where}.gates.{role}", f"{least:g} is not above 0 and up to 1", "the least reward that opens the gate")
    yield from _share(where, "pass_threshold", spec.pass_threshold)


CHECKS: dict[type[Any], Callable[[Any, str], Iterator[Fault]]] = {
    **dict.fromkeys((StringCheck, TextSimilarity, F1Set), _two_texts),
    ScoreModel: _score_model,
    LabelModel: _label_model,
    Python: _python,
    Endpoint: _endpoint,
    Multi: _multi,
    Numeric: _numeric,
    Trajectory: _trajectory,
    Schema: _schema,
    CodeRun: _code_run,
    Stack: _stack,
}
