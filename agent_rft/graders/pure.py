"""The graders that need nobody but themselves, built from what their JSON says."""

from __future__ import annotations

from collections.abc import Callable

from agent_rft.contracts.ports import Grader
from agent_rft.graders import spec as specs
from agent_rft.graders.base import PASS_THRESHOLD
from agent_rft.graders.f1_set import F1SetGrader
from agent_rft.graders.multi import MultiGrader
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.schema import SchemaGrader
from agent_rft.graders.spec import GraderSpec
from agent_rft.graders.stack import StackGrader
from agent_rft.graders.text import Embed, StringCheckGrader, TextSimilarityGrader, WordNet
from agent_rft.graders.trajectory import Options, TrajectoryGrader

Build = Callable[[GraderSpec], Grader]


def build_pure(spec: GraderSpec, build: Build, embed: Embed | None = None, wordnet: WordNet | None = None) -> Grader | None:
    """None for a type that asks a model, an endpoint or the sandbox. `build` makes the parts of a multi or a stack."""
    match spec:
        case specs.StringCheck():
            return StringCheckGrader(spec.input, spec.reference, spec.operation, spec.name)
        case specs.TextSimilarity():
            return TextSimilarityGrader(
                spec.input, spec.reference, spec.evaluation_metric, spec.pass_threshold, spec.name, embed=embed, wordnet=wordnet
            )
        case specs.Numeric():
            return NumericGrader(spec.use_row_tolerance, spec.tolerance)
        case specs.Schema():
            return SchemaGrader(spec.schema, spec.name)
        case specs.F1Set():
            return F1SetGrader(spec.input, spec.reference, spec.pass_threshold, spec.name)
        case specs.Trajectory():
            return TrajectoryGrader(_options(spec), spec.name)
        case specs.Multi():
            graders = {key: build(part) for key, part in spec.graders.items()}
            return MultiGrader(graders, spec.calculate_output, spec.pass_threshold, spec.name)
        case specs.Stack():
            return _stack(spec, build)
        case _:
            return None


def _options(spec: specs.Trajectory) -> Options:
    return Options(
        required_tools=spec.required_tools,
        evidence=spec.evidence,
        evidence_tool=spec.evidence_tool,
        evidence_argument=spec.evidence_argument,
        max_calls=spec.max_calls,
        max_redundant=spec.max_redundant,
        min_parallelism=spec.min_parallelism,
        max_calls_after_evidence=spec.max_calls_after_evidence,
        weights={str(key): weight for key, weight in spec.weights.items()},
        pass_threshold=PASS_THRESHOLD if spec.pass_threshold is None else spec.pass_threshold,
    )


def _stack(spec: specs.Stack, build: Build) -> StackGrader:
    parts = spec.parts()
    return StackGrader(
        graders={role: build(part.grader) for role, part in parts.items()},
        weights={role: 1.0 if part.weight is None else part.weight for role, part in parts.items()},
        gates={str(role): least for role, least in spec.gates.items()},
        calculate_output=spec.calculate_output,
        pass_threshold=spec.pass_threshold,
        name=spec.name,
    )
