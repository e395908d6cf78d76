"""`memr1 train --dry-run`: everything that can be known of a run before it starts, without GPU, weights or network.

It reads the data, builds prompts with the run's own code, and plans devices, memory and tokens. Where something is not
at hand, a stand-in takes its place, and the report says so: nothing is passed over in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from memr1.agents.roles import Prompt
from memr1.config import Config
from memr1.config_file import to_yaml
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error
from memr1.models.architectures import Architecture, describe
from memr1.training.checkpoints import committed
from memr1.training.estimate import learner_bytes, runner_bytes, step_tokens
from memr1.training.samples import Sample, kind_of, samples
from memr1.training.worlds import training_dialogues

SHOWN_DIALOGUES = 2
"""Dialogues from which the prompts are built."""
SHOWN_LINES = 24
"""Longest prompt that is printed in full, in lines; of longer ones the middle is left out."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a run is planned for."""

    count: int
    gib: float | None = None
    """Memory of each; None where unknown."""


def read_gpus(text: str) -> Gpus:
    """`4x80` is four GPUs with 80 GiB each, `4` four of unknown size; empty takes those of this machine."""
    if not text:
        import torch

        count = torch.cuda.device_count()
        size = min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0)
        return Gpus(count, size / 2**30 if count else None)
    match = re.fullmatch(r"(\d+)(?:x(\d+(?:\.\d+)?))?", text)
    if match is None:
        raise MemR1Error(f"--gpus {text!r}: write a number of GPUs, or number x GiB, such as 4x80")
    return Gpus(int(match[1]), float(match[2]) if match[2] else None)


def dry_run(config: Config, gpus: Gpus, console: Console | None = None) -> None:
    """Print the resolved configuration, prompts of every trained role, the plan, and estimates of memory and tokens.

    Raises MemR1Error for what would stop the run: data that cannot be read, tasks that cannot be made, prompts that the
    model has no window for, fewer GPUs than learners, more memory than a GPU has.
    """
    console = console or Console()

    def say(text: str = "") -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    unchecked: list[str] = ["the weights of the model, and its speed"]
    say(f"# Configuration\n{to_yaml(config)}")
    if not config.stages:
        raise MemR1Error("stages: the configuration has none; see configs/ for examples")
    if committed(config.run_dir):
        say(f"{config.run_dir}: a run is there already; it needs --resume auto or another `name`\n")
    dialogues = training_dialogues(config)
    say("# Data\n" + _data_line(config, dialogues))
    arch = _architecture(config, unchecked)
    if arch is not None:
        _check_window(config, arch)
        adapters = f", {arch.adapter_parameters / 1e6:.3g} M in an adapter" if config.model.weights == "lora" else ""
        say(f"\n# Model\n{arch.name}: {arch.parameters / 1e9:.3g} B weights{adapters}")
        say(f"a window of {arch.window} tokens; known from {arch.source}")
    made = samples(config, dialogues[:SHOWN_DIALOGUES], unchecked)
    for kind, sample in made.items():
        say(f"\n# Prompts of the {kind}, of {len(sample.prompts)} made from {sample.made_of}")
        for prompt in _two_prompts(sample.prompts):
            cut = f", {prompt.cut} memories left out for rollout.max_prompt_tokens" if prompt.cut else ""
            say(f"--- {len(prompt.ids)} tokens{cut}\n{_shortened(prompt.text)}")
    say("\n# Plan")
    placed = plan(config, gpus)
    for line in placed.lines:
        say(line)
    if arch is not None:
        say("\n# Memory, at most")
        for line in _memory_lines(config, arch, placed, gpus, made):
            say(line)
    say("\n# Tokens in a step, at most")
    for line in _token_lines(config, made):
        say(line)
    say("\n# Not checked here")
    for item in unchecked:
        say(f"- {item}")


def _data_line(config: Config, dialogues: Sequence[Dialogue]) -> str:
    turns = sum(1 for d in dialogues for _ in d.turns())
    at_end = sum(q.asked_after is None for d in dialogues for q in d.questions)
    later = sum(len(d.questions) for d in dialogues) - at_end
    where = f" {config.data.path}" if config.data.path else ""
    names = ", ".join(d.id for d in dialogues[:3]) + (", ..." if len(dialogues) > 3 else "")
    questions = f"{at_end} questions" + (f" and {later} asked after single turns" if later else "")
    return f"{config.data.kind}{where}: {len(dialogues)} dialogues to train on ({names}), {turns} turns, {questions}"


def _architecture(config: Config, unchecked: list[str]) -> Architecture | None:
    try:
        return describe(config.model.name, config.model.lora)
    except MemR1Error as error:
        unchecked.append(f"memory and window: {error}")
        return None


def _check_window(config: Config, arch: Architecture) -> None:
    rollout = config.rollout
    longest = max(rollout.answer_max_new_tokens, rollout.manager_max_new_tokens, rollout.extractor_max_new_tokens)
    if rollout.max_prompt_tokens + longest > arch.window:
        raise MemR1Error(
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} and a completion of {longest} tokens exceed the "
            f"window of {arch.name}, {arch.window}; set rollout.max_prompt_tokens to at most {arch.window - longest}"
        )


def _two_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompt of middle length, and the longest."""
    by_length = sorted(prompts, key=lambda prompt: len(prompt.ids))
    return [by_length[len(by_length) // 2], by_length[-1]]


def _shortened(text: str) -> str:
    lines = text.rstrip().splitlines()
    if len(lines) <= SHOWN_LINES:
        return "\n".join(lines)
    half = SHOWN_LINES // 2
    return "\n".join([*lines[:half], f"    [{len(lines) - 2 * half} lines left out]", *lines[-half:]])


# -- devices, memory, tokens -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What runs where."""

    lines: list[str]
    devices: dict[str, tuple[int, int]]
    """Kind of device -> (learners, runners) that share one of it."""


def plan(config: Config, gpus: Gpus) -> Plan:
    """What runs where on a machine with these GPUs. Raises MemR1Error when they are too few."""
    from memr1.rllib.resources import shares

    runners, learners = config.rollout.num_runners, config.learner.num_learners
    if config.backend == "local":
        where = "the CPU" if _on_cpu(config, gpus) else "one GPU"
        return Plan([f"one process on {where}: a runner and a learner"], {where: (1, 1)})
    actors = f"{runners} runners that play episodes, {learners} learners that train"
    if _on_cpu(config, gpus):
        return Plan([f"Ray on CPUs: {actors}"], {"the CPUs": (learners, runners)})
    count = gpus.count or runners + learners
    claim = shares(config, 2.0 * (runners + learners), count, 1)
    if claim.learner_gpus == 1.0:
        per_gpu = round(1 / claim.runner_gpus)
        devices = {"a learner's GPU": (1, 0), "a runners' GPU": (0, min(per_gpu, runners))}
        detail = f"each learner has a GPU, and a GPU holds up to {per_gpu} runners"
    else:
        per_gpu = round((1 - claim.learner_gpus) / claim.runner_gpus)
        devices = {"a GPU": (1, min(per_gpu, runners))}
        detail = f"a learner shares its GPU with up to {per_gpu} runners"
    assumed = "" if gpus.count else " (none is here: as many as there are actors are assumed; --gpus says otherwise)"
    return Plan(
        [
            f"Ray on {count} GPUs{assumed}: {actors}",
            f"{detail}; model.weights={config.model.weights}, ZeRO stage {config.learner.zero_stage}",
            "weights go to the runners after every optimizer step, through Ray's object store",
        ],
        devices,
    )


def _on_cpu(config: Config, gpus: Gpus) -> bool:
    device = config.model.device
    return device == "cpu" or (device == "auto" and gpus.count == 0)


def _memory_lines(
    config: Config, arch: Architecture, placed: Plan, gpus: Gpus, made: Mapping[str, Sample]
) -> Iterator[str]:
    on_cpu = _on_cpu(config, gpus)
    width = 4 if config.model.dtype == "float32" or (config.model.dtype == "auto" and on_cpu) else 2
    learner = learner_bytes(arch, config, width, _scored_share(config, made))
    runner = runner_bytes(arch, config, width)
    for name, parts in (("learner", learner), ("runner", runner)):
        listed = ", ".join(f"{what} {_gib(size)}" for what, size in parts.items())
        yield f"a {name}: {_gib(sum(parts.values()))} GiB ({listed})"
    one_process = config.backend == "local" and config.model.weights == "lora"
    whole = config.rollout.engine == "transformers" and config.learner.zero_stage < 3
    shared = arch.parameters * width if one_process and whole else 0  # the base, which both read there
    for device, (learners, runners) in placed.devices.items():
        total = learners * sum(learner.values()) + runners * sum(runner.values()) - shared
        total = max(total, 2 * shared)  # for a moment, while the learner is made, it is there twice
        yield f"{device}, {learners} learners and {runners} runners: {_gib(total)} GiB"
        if gpus.gib is not None and not on_cpu and total / 2**30 > gpus.gib:
            raise MemR1Error(
                f"{device} would hold {_gib(total)} GiB and has {gpus.gib:g}; lower learner.max_tokens_per_microbatch "
                "or rollout.max_tokens_per_batch, set learner.gradient_checkpointing=true or model.weights=lora, or "
                "raise learner.zero_stage"
            )


def _scored_share(config: Config, made: Mapping[str, Sample]) -> float:
    """Share of completions in a row of the update, where a group shares its prompt."""
    limits = {"answerer": config.rollout.answer_max_new_tokens, "manager": config.rollout.manager_max_new_tokens}
    group = max((s.group_size or config.rollout.group_size for s in config.stages), default=1)
    shares = []
    for kind, sample in made.items():
        written = group * limits[kind.partition(" ")[0]]
        shares.append(written / (written + min(len(p.ids) for p in sample.prompts)))
    return max(shares)


def _token_lines(config: Config, made: Mapping[str, Sample]) -> Iterator[str]:
    for stage in config.stages:
        sample = made[kind_of(stage)]
        tokens = step_tokens(
            stage,
            config,
            sample.longest,
            made["answerer"].longest,
            sample.demonstration,
            sample.decisions,
            sample.questions,
        )
        counts = f"{tokens.prefilled:,} read, {tokens.generated:,} written, {tokens.trained:,} trained"
        yield f"{stage.name}, {stage.steps} steps: {counts}; {tokens.trained * stage.steps:,} trained in all"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
