"""One GRPO step of the local engine beside one of TRL's GRPOTrainer, in one process, taking turns.

Same model, prompts, group size, token limits, tools (the same functions, called in process), optimizer and loss: a group
baseline, clipped ratio, k3 KL to the frozen base, a mean over the step's sampled tokens. TRL runs its own tool loop
(environment_factory). The learning rate is next to nothing, so both sides roll out the same policy in every step.

    python bench/engine.py [--model models/research-tiny] [--steps 5] [--threads 1]
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACE = HERE / ".venvs" / "engine"
PEER = "TRL GRPOTrainer 1.16"
PACKAGES = ("trl==1.16.*", "transformers==5.23.*", "peft==0.21.*", "msgspec", "numpy", "jmespath")


def in_a_place_of_its_own() -> None:
    """Run this file again in a virtual environment that holds the peer; the project's own stays as it is."""
    if Path(sys.prefix).resolve() == PLACE.resolve():
        return
    if not (PLACE / "ready").exists():
        print(f"installing {PEER} into {PLACE.relative_to(HERE.parent)} ...", flush=True)
        venv.create(PLACE, with_pip=True, clear=True)
        for packages in (("torch==2.13.0",), PACKAGES):  # torch first: where there is a choice, the one chosen here stays
            subprocess.run([PLACE / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
        (PLACE / "ready").touch()
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    env |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    os.execve(PLACE / "bin" / "python", [str(PLACE / "bin" / "python"), *sys.argv], env)


in_a_place_of_its_own()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from agent_rft.contracts.grades import Grade, GraderRef  # noqa: E402
from agent_rft.contracts.rollouts import Limits  # noqa: E402
from agent_rft.contracts.rows import Row  # noqa: E402
from agent_rft.contracts.training import Algorithm, Model  # noqa: E402
from agent_rft.datasets.filings import TOOLS  # noqa: E402
from agent_rft.datasets.research import make_rows, make_world  # noqa: E402
from agent_rft.rollouts.driver import Try, collect  # noqa: E402
from agent_rft.rollouts.in_process import InProcessTools  # noqa: E402
from agent_rft.rollouts.seeds import derive_seed  # noqa: E402
from agent_rft.training.advantages import group_advantages, shaped  # noqa: E402
from agent_rft.training.local.batches import trajectories  # noqa: E402
from agent_rft.training.local.checkpoints import Checkpoints  # noqa: E402
from agent_rft.training.local.engine import LocalEngine  # noqa: E402
from agent_rft.training.local.sampler import LocalSampler  # noqa: E402
from serving.tools.corpus import CorpusTools  # noqa: E402

PROMPTS, GROUP = 8, 8
TRAJECTORY_TOKENS, TURN_TOKENS, TOOL_CALLS = 1536, 64, 12
CALL_COST, LEARNING_RATE, KL, CLIP = 0.02, 1e-9, 0.01, 0.2
RESPONSES = {  # how TRL is to read tool calls: it knows the templates of well-known models only
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


def right(answer: str, row: Row) -> float:
    """Both sides grade alike, and at no cost."""
    return float(answer.strip() == str(row.reference_answer))


class Exact:
    ref = GraderRef("exact", "1", "bench")

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        return Grade(self.ref, float(str(sample.get("output_text", "")).strip() == str(item["reference_answer"])))


@contextlib.contextmanager
def timed(into: dict[str, list[float]], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into.setdefault(name, []).append(time.perf_counter() - wall)
    into.setdefault(f"{name} cpu", []).append(time.process_time() - cpu)


class Ours:
    """The local engine, a step at a time."""

    def __init__(self, model: str, rows: list[Row], tools: CorpusTools) -> None:
        algorithm = Algorithm(
            group_size=GROUP,
            batch_size=PROMPTS,
            epochs=1,
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            kl_coef=KL,
            clip_ratio=CLIP,
            call_cost=CALL_COST,
            temperature=1.0,
            max_grad_norm=1.0,
            micro_batch_tokens=2048,
        )
        nowhere = Checkpoints(Path(tempfile.gettempdir()) / "no-checkpoints", 1)
        self._engine = LocalEngine(Model(path=model), algorithm, nowhere, "bench", 0, resume=False)
        sampler = self._engine.sampler
        assert isinstance(sampler, LocalSampler)
        self._sampler, self._rows, self._tools = sampler, rows, InProcessTools(tools)
        self._limits = Limits(TOOL_CALLS + 1, TOOL_CALLS, TRAJECTORY_TOKENS, TURN_TOKENS)
        self.times: dict[str, list[float]] = {}
        self.tokens: list[int] = []
        self.calls: list[float] = []

    def step(self, number: int) -> None:
        spent, reference = self._sampler.spent, self._engine.reference_seconds
        before = spent.prefill_seconds, spent.decode_seconds
        rows = self._rows[number * PROMPTS : (number + 1) * PROMPTS]
        tries = [Try(row, i, derive_seed(0, "bench", number, row.id, i)) for row in rows for i in range(GROUP)]
        with timed(self.times, "step"):
            with timed(self.times, "rollouts"):
                done = asyncio.run(collect(tries, self._sampler, self._tools, Exact(), self._limits))
            rewards = [shaped(g.reward or 0.0, g.rollout.tool_calls, CALL_COST) for g in done]
            groups = [rewards[i : i + GROUP] for i in range(0, len(rewards), GROUP)]
            batch = trajectories(done, [advantage for group in groups for advantage in group_advantages(group)])
            with timed(self.times, "update"):
                self._engine.update(batch, LEARNING_RATE)
        prefill, decode = spent.prefill_seconds - before[0], spent.decode_seconds - before[1]
        reference = self._engine.reference_seconds - reference
        self._note("prefill", prefill)
        self._note("decode", decode)
        self._note("tools and the rest of rollouts", self.times["rollouts"][-1] - prefill - decode)
        self._note("reference", reference)
        self._note("training", self.times["update"][-1] - reference)
        self.tokens.append(sum(len(trajectory.ids) for trajectory in batch))
        self.calls.append(statistics.fmean(g.rollout.tool_calls for g in done))

    def _note(self, name: str, seconds: float) -> None:
        self.times.setdefault(name, []).append(seconds)


def make_environment(tools: CorpusTools) -> type:
    """TRL's tools: methods of an object that it makes for each rollout."""

    class Filings:
        calls = 0

        def reset(self, **row: Any) -> None:
            self.calls = 0

        def _call(self, name: str, **arguments: Any) -> str:
            self.calls += 1
            return tools.call(name, arguments)[0]

        def search(self, query: str) -> str:
            """Search the filings by words.

            Args:
                query: words to look for.
            """
            return self._call("search", query=query)

        def list(self, prefix: str) -> str:
            """List the paths that begin with a prefix.

            Args:
                prefix: how the paths begin.
            """
            return self._call("list", prefix=prefix)

        def read(self, path: str) -> str:
            """Read one filing by its path.

            Args:
                path: its path.
            """
            return self._call("read", path=path)

    return Filings


class Turns(TrainerCallback):
    """Times TRL's step, then lets the local engine take one."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.times: dict[str, list[float]] = {}
        self.began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.times.setdefault("step", []).append(time.perf_counter() - self.began[0])
        self.times.setdefault("step cpu", []).append(time.process_time() - self.began[1])
        self.ours.step(state.global_step - 1)
        print(f"  step {state.global_step}: TRL {self.times['step'][-1]:.2f} s, ours {self.ours.times['step'][-1]:.2f} s", flush=True)


def run_both(model: str, steps: int, micro_batch: int, tools: CorpusTools, rows: list[Row]) -> tuple[Ours, Turns, dict[str, list[float]]]:
    ours = Ours(model, rows, tools)
    turns = Turns(ours)
    seen: dict[str, list[float]] = {"calls": [], "tokens": []}

    def reward(prompts: Any, completions: Any, completion_ids: Any, environments: Any, row: Any, **more: Any) -> list[float]:
        seen["calls"].append(statistics.fmean(environment.calls for environment in environments))
        seen["tokens"].append(sum(len(ids) for ids in completion_ids))
        ends = [said[-1]["content"] if said[-1]["role"] == "assistant" and not said[-1].get("tool_calls") else "" for said in completions]
        graded = [right(end or "", rows[index]) for end, index in zip(ends, row, strict=True)]
        return [shaped(grade, environment.calls, CALL_COST) for grade, environment in zip(graded, environments, strict=True)]

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.response_template = RESPONSES
    asked = [{"prompt": [{"role": "user", "content": row.prompt}], "row": i} for i, row in enumerate(rows[: steps * PROMPTS])]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=PROMPTS * GROUP // micro_batch,
        num_generations=GROUP,
        max_steps=steps,
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        beta=KL,
        epsilon=CLIP,
        loss_type="dapo",
        temperature=1.0,
        max_completion_length=TRAJECTORY_TOKENS,
        generation_kwargs={"max_new_tokens": TURN_TOKENS},
        max_tool_calling_iterations=TOOL_CALLS,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config,
        train_dataset=Dataset.from_list(asked),
        processing_class=tokenizer,
        callbacks=[turns],
        environment_factory=make_environment(tools),
        reward_funcs=reward,
    )
    trainer.train()
    return ours, turns, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(HERE.parent / "models" / "research-tiny"))
    parser.add_argument("--steps", type=int, default=6, help="steps of each; the first warms up and does not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=32, help="TRL's rows a pass; 32 is what suits it best here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    filings = make_world()
    tools = CorpusTools({filing.path: filing.html() for filing in filings}, TOOLS)
    ours, peer, seen = run_both(args.model, args.steps, args.micro_batch, tools, make_rows(filings)[0])
    report(ours, peer, seen, args)


def report(ours: Ours, peer: Turns, seen: dict[str, list[float]], args: argparse.Namespace) -> None:
    def middle(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(times[name][1:])

    def row(name: str, times: dict[str, list[float]]) -> str:
        wall = times["step"][1:]
        return f"{name:<24}{middle(times, 'step'):>8.2f}{min(wall):>8.2f}{max(wall):>8.2f}{middle(times, 'step cpu'):>10.2f}"

    print(f"\n{'':<24}{'s/step':>8}{'least':>8}{'most':>8}{'CPU s':>10}{'calls':>8}")
    print(f"{row('agent-rft, local', ours.times)}{statistics.fmean(ours.calls[1:]):>8.1f}")
    print(f"{row(PEER, peer.times)}{statistics.fmean(seen['calls'][1:]):>8.1f}")
    print("\nwhere our time goes (s a step):")
    for name in ("prefill", "decode", "tools and the rest of rollouts", "reference", "training"):
        print(f"  {name:<32}{middle(ours.times, name):>6.2f}")
    walls = [theirs / mine for theirs, mine in zip(peer.times["step"][1:], ours.times["step"][1:], strict=True)]
    cpus = [theirs / mine for theirs, mine in zip(peer.times["step cpu"][1:], ours.times["step cpu"][1:], strict=True)]
    conditions = {
        "model": Path(args.model).name,
        "prompts": PROMPTS,
        "group": GROUP,
        "steps": args.steps - 1,
        "threads": args.threads,
        "torch": torch.__version__,
        "trajectory_tokens": TRAJECTORY_TOKENS,
        "turn_tokens": TURN_TOKENS,
        "trl_micro_batch": args.micro_batch,
        "our_calls": round(statistics.fmean(ours.calls[1:]), 2),
        "peer_calls": round(statistics.fmean(seen["calls"][1:]), 2),
        "cpu_ratio": round(statistics.median(cpus), 2),
        "lowest": round(min(walls), 2),
        "highest": round(max(walls), 2),
    }
    result = {
        "bench": "engine",
        "peer": PEER,
        "ratio": round(statistics.median(walls), 2),
        "unit": "steps per second",
        "conditions": conditions,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
