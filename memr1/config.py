"""The whole configuration of a run as typed dataclasses, and the one function that reads it.

YAML and `key=value` overrides are merged by OmegaConf at the edge (`load_config`); from there on everything gets
frozen dataclasses. An unknown key is an error that names the file and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memr1.data.factworld import FactWorldConfig
from memr1.errors import MemR1Error
from memr1.evaluation.systems import get_system
from memr1.models.adapters import LoraSettings
from memr1.rewards.base import make_reward
from memr1.rollout.endpoint import EndpointConfig
from memr1.storage import local_path


@dataclass(frozen=True)
class ModelConfig:
    """The language model that every role starts from."""

    name: str = "smollm2-135m"
    """A registered name (`memr1 models list`), a local directory, or a hub id such as `Qwen/Qwen2.5-3B-Instruct`."""
    weights: str = "lora"
    """`lora` trains one adapter per role over a shared base; `full` trains a full copy per role."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Used when `weights` is `lora`."""
    device: str = "auto"
    """`auto` takes a GPU where there is one, otherwise the CPU; `cpu` or `cuda` force it."""
    dtype: str = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU; `bfloat16` or `float32` force it."""
    threads: int = 0
    """CPU threads for each process that runs the model; 0 takes all cores."""


@dataclass(frozen=True)
class DataConfig:
    """Where dialogues and questions come from."""

    kind: str = "factworld"
    """`factworld` (generated), `locomo` (a JSON file of conversations) or `jsonl` (your own, see docs/data.md)."""
    path: str | None = None
    """File to read for `locomo` and `jsonl`, or its URL, such as s3://bucket/file."""
    factworld: FactWorldConfig = field(default_factory=FactWorldConfig)
    """Settings of the generator, for training worlds; its `split` and `seed` are set per use."""
    captions: bool = True
    """Show the captions of shared images with their turns. Some of LoCoMo's questions need them; the authors of
    Memory-R1 leave images out."""
    window: int = 0
    """Turns before a decision whose facts make up the temporal bank that the manager practises on; 0 takes all from the
    beginning. Memory-R1 says 50 in one place and 24 in another."""
    cache: str | None = None
    """Folder of extracted facts and training tuples (docs/data.md); `<output>/.cache` if not set."""


@dataclass(frozen=True)
class MemoryConfig:
    """The memory bank and its retrieval."""

    embedder: str = "minilm"
    """`minilm`, `hash` (no weights), a local directory or a hub id for sentence-transformers."""
    index: str = "exact"
    """`exact` (numpy) or `chroma`."""
    manager_top_k: int = 5
    """Old entries shown to the manager for each new fact."""
    answerer_top_k: int = 60
    """Entries shown to the answerer for a question: its retrieval budget."""
    per_speaker: bool = False
    """Divide that budget equally among the speakers: with 60 and two speakers, the 30 best entries of each."""
    pressure: float = 0.0
    """Taken off the manager's reward for each entry that a decision adds to the bank, and once for a decision that
    cannot be parsed or is rejected, but only where every answer is right: being right comes first, thrift second. 0 is
    the paper's outcome-only reward, under which adding everything is nearly free while banks are small. 0.05 to 0.2."""
    on_reject: str = "abort"
    """`abort` applies a decision wholly or not at all; `skip` applies the valid operations of a decision."""


@dataclass(frozen=True)
class AgentsConfig:
    """How the roles speak."""

    extractor: str = "gold"
    """`gold` takes the dataset's facts, `utterance` the turn's text itself, `llm` asks the base model, once."""
    extractor_dates: bool = True
    """Show the date of the session to the extractor, which can then turn "yesterday" into a day. The authors' code
    hides it."""
    protocol: str = "lines"
    """`lines` (compact, for small models) or `json` (the paper's mem0-style prompts)."""
    distillation: bool = True
    """Have the answerer name the memories it uses before it answers (Memory Distillation); `false` is the ablation."""
    answerer_endpoint: EndpointConfig | None = None
    """A server that answers in place of the answerer's own weights, in rollouts of the manager and in evaluation. No
    stage may train the answerer then."""
    extractor_endpoint: EndpointConfig | None = None
    """A server that extracts facts, with `agents.extractor=llm`; else the base model does."""


@dataclass(frozen=True)
class RolloutConfig:
    """Generation and the workers that play episodes."""

    num_runners: int = 1
    """Ray actors that play episodes. With the `local` backend everything runs in this process."""
    engine: str = "transformers"
    """What generates: `transformers` (built in, CPU and GPU) or `vllm` (an optional extra, see docs/install.md)."""
    vllm_memory_fraction: float = 0.5
    """Share of a GPU's memory that vLLM takes for weights and key-value cache; the rest is left to a learner."""
    verify_weights: bool = True
    """Check every byte of weights that reach a Ray runner by a checksum, besides names and shapes: 1 s for each GB."""
    prompts_per_step: int = 8
    """Distinct tasks played in one training step; each is played `group_size` times."""
    group_size: int = 8
    """Rollouts per task that share a snapshot; GRPO compares them with one another. 4 to 16, at least 2
    for GRPO."""
    questions_per_decision: int = 6
    """Questions that judge one decision of the manager: on the turn first, then one on each old entry in sight, which a
    wrong operation would hit. With fewer than 1 + `memory.manager_top_k`, some entries are not watched."""
    temperature: float = 1.0
    """Sampling temperature in training. Evaluation is greedy."""
    answer_max_new_tokens: int = 32
    """Longest completion of the answerer in tokens. A completion cut here is scored as it stands."""
    manager_max_new_tokens: int = 48
    """Longest completion of the manager in tokens, for one decision."""
    extractor_max_new_tokens: int = 128
    """Longest completion of the extractor in tokens, for one turn; used with `agents.extractor=llm` only."""
    max_prompt_tokens: int = 1024
    """Longest prompt. Longer ones lose their least relevant memories first; what cannot be cut is refused."""
    max_tokens_per_batch: int = 16384
    """Prompt tokens generated from at a time, padding counted; bounds the memory of the key-value cache."""
    resample_rounds: int = 0
    """Extra rounds of tasks played when groups have no variance, to refill the batch (DAPO's dynamic sampling, arXiv
    2503.14476, with a cap), each of up to four times `prompts_per_step` tasks; 0 switches it off."""
    max_staleness: int = 0
    """Updates by which the weights that play may be behind those that learn. 0 plays, then updates. 1 plays the groups
    of the next step while the learner updates on this one's; `algo.importance_cap` corrects for the difference."""


@dataclass(frozen=True)
class CriticConfig:
    """The value function of a `ppo` stage (arXiv 1707.06347). Every stage makes one of its own."""

    backbone: str = "own"
    """What the value head reads. `own`: an adapter of the critic's own, or with `model.weights: full` a model of its
    own; it begins as the policy does. `policy`: the hidden states of the policy, and no gradient goes back into them:
    it costs next to nothing, and can only weigh what the policy tells apart anyway."""
    learning_rate: float = 5e-4
    """Constant learning rate of the critic. With a model of its own about 1e-5."""
    warmup_steps: int = 2
    """Steps at the beginning of the stage in which the critic alone is updated."""
    clip: float = 0.2
    """How far values may move from those before the update before the value loss stops rewarding it; 0 is off."""
    discount: float = 1.0
    """Discount of rewards per token (gamma of arXiv 1506.02438)."""
    gae_lambda: float = 1.0
    """Lambda of the generalised advantage estimate: 1 trusts outcomes alone, lower values trust the critic."""


@dataclass(frozen=True)
class AlgoConfig:
    """What the objectives that learn from outcomes optimise: `grpo` (arXiv 2402.03300), `ppo` (arXiv 1707.06347) and
    `reinforce`."""

    advantage: str = "grpo"
    """For `grpo` stages. `grpo` divides rewards less their group's mean by the group's standard deviation; `dr-grpo`
    does not (arXiv 2503.20783); `rloo` compares each with the mean of the others (arXiv 2402.14740)."""
    clip_low: float = 0.2
    """Lower clip of the probability ratio."""
    clip_high: float = 0.2
    """Upper clip of the probability ratio; 0.28 is DAPO's clip-higher (arXiv 2503.14476)."""
    dual_clip: float = 0.0
    """Above 1, bounds the loss of a token with a negative advantage (arXiv 1912.09729); 0 is off, 3 is usual."""
    ratio: str = "token"
    """`token`, or `sequence` for GSPO's ratio of whole sequences (arXiv 2507.18071). That one needs
    `aggregation: sequence-mean` and far narrower clips, such as 3e-4 and 4e-4."""
    kl_coef: float = 0.0
    """Weight of the KL to the reference; 0 skips the reference model. 0.001 is usual."""
    kl_in: str = "loss"
    """`loss` adds the k3 estimate to the loss; `reward` takes the k1 estimate off the reward of each token, for `ppo`
    stages only."""
    importance_cap: float = 2.0
    """Cap C of the truncated importance weight min(pi_train / pi_rollout, C); 0 switches the correction off."""
    aggregation: str = "token-mean"
    """`token-mean` over the whole optimizer step and all ranks; `sequence-mean` gives every completion one weight,
    `trajectory-mean` every trajectory, however many steps it has."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """For `ppo` stages."""


@dataclass(frozen=True)
class LearnerConfig:
    """The DeepSpeed learner group."""

    num_learners: int = 1
    """DeepSpeed ranks; each takes one GPU where there are GPUs."""
    zero_stage: int = 0
    """ZeRO stage: 0 to 3. With LoRA on one device 0 is right."""
    max_tokens_per_microbatch: int = 4096
    """Packed tokens in one forward and backward pass, padding counted."""
    share_prefixes: bool = True
    """Compute the prompt of a group once in the update; equal to the unshared computation, only faster."""
    offload_optimizer: bool = False
    """Keep the optimizer's states in the host's memory and step there; for ZeRO stages 1 to 3. Saves 8 bytes per
    trained weight on a GPU (12 in bf16), and a step takes longer."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW momentum terms."""
    collective_timeout_s: float = 600.0
    """A collective between learners that takes longer fails the run with a message instead of hanging it."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: who learns, how, and for how long."""

    role: str = "answerer"
    """`answerer` or `manager`; the other role is frozen meanwhile."""
    objective: str = "grpo"
    """`sft` clones oracle traces (Memory-SFT). The others learn from outcomes: `grpo` compares them within a group,
    `reinforce` with the mean of the batch, and `ppo` with what a critic expected."""
    steps: int = 20
    """Optimizer steps."""
    learning_rate: float = 2e-4
    """Peak learning rate. LoRA 1e-4 to 5e-4, full fine-tuning about 1e-6."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    schedule: str = "constant"
    """The learning rate after the warm-up: `constant`, or `linear` or `cosine` towards 0 at the end of the stage."""
    epochs: int = 1
    """Passes over the batch of a step, each one optimizer step (the mu of arXiv 2402.03300, algorithm 1). Above 1 the
    clipped ratio keeps the policy near the one that sampled; worth it where rollouts cost far more than updates."""
    prompts_per_step: int = 0
    """Distinct tasks in one step of an objective that plays; 0 takes `rollout.prompts_per_step`."""
    group_size: int = 0
    """Rollouts per task; 0 takes `rollout.group_size`. The manager's decisions are short, and equal ones are judged
    once, so that larger groups cost it little. 1 will do for `ppo` and `reinforce`."""
    examples_per_step: int = 8
    """Demonstrations in one step of an `sft` stage; the others use `prompts_per_step`."""
    episode: str = "decision"
    """Of a manager: `decision` is one decision from a snapshot, `replay` goes through many turns, with one reward."""
    replay_turns: int = 0
    """Turns with facts in one `replay`; 0 replays the whole dialogue, from an empty bank."""
    traces: str | None = None
    """For `sft`: folder of a run, or JSON-lines file, with completions of a teacher to clone (docs/reproducing.md); the
    oracle's demonstrations if not set."""
    traces_min_reward: float = 1.0
    """Least reward of a trace that is cloned, where it has one."""
    evidence_reward: float = 0.0
    """Of an answerer: the weight in the reward of the F1 of the selected memories against those shown that hold
    evidence. 0 is the paper's outcome-only reward."""
    bank: str = "oracle"
    """Whose bank the answerer is trained on: `oracle`, `manager` (the manager as it is now), or `add-everything`."""
    reward: str = "em_set"
    """Measure of the answer that pays: `em_strict`, `em_squad`, `em_set`, `f1`, `bleu1` or `judge` (the model of the
    run's `judge`), or a weighted sum such as `0.5*em_set+0.5*f1`."""

    @property
    def replay(self) -> int | None:
        """Turns of one replay, 0 for all; None where every decision is an episode of its own."""
        return self.replay_turns if self.episode == "replay" else None

    @property
    def name(self) -> str:
        """Short name in logs and file names, for example `answerer-grpo`."""
        return f"{self.role}-{self.objective}"


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured at the end of a run."""

    num_worlds: int = 40
    """Held-out FactWorld worlds; each has `data.factworld.questions_per_world` questions."""
    systems: tuple[str, ...] = (
        "no-memory",
        "bm25",
        "embedding",
        "full-context",
        "untrained",
        "add-everything",
        "warm-started",
        "trained",
    )
    """Rows of the table, see `memr1 eval --help`."""
    retrieval_top_k: int = 5
    """Turns retrieved by the `bm25` and `embedding` baselines."""
    at_end: bool = True
    """Evaluate when training is done."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    every_steps: int = 10
    """Optimizer steps between checkpoints; one is always written at the end of a stage and on Ctrl-C."""
    keep: int = 3
    """Newest checkpoints kept; older ones are deleted, except those at the ends of stages."""


@dataclass(frozen=True)
class ClaimConfig:
    """What one Ray actor claims. Claims place actors; they do not limit what a process uses."""

    cpus: float | None = None
    """CPUs, or a fraction; unset fits it to the cluster."""
    gpus: float | None = None
    """GPUs, or a fraction, which puts several actors on one; unset fits it to the cluster."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that the node must have (`ray start --labels`), for example `{pool: rollout}`."""


@dataclass(frozen=True)
class PlacementConfig:
    """Where actors go on a Ray cluster. Embedder, rewards and the frozen role live in every runner, the reference of
    the KL in every learner; they have no place of their own."""

    runners: ClaimConfig = field(default_factory=ClaimConfig)
    """Each runner."""
    learners: ClaimConfig = field(default_factory=ClaimConfig)
    """Each learner."""
    gpus: str = "shared"
    """`shared` lets runners and learners share GPUs where there are too few; `apart` never does."""
    strategy: str = "spread"
    """Of the learners: `spread` or `pack` (as far as possible), `strict-spread` or `strict-pack` (or not at all)."""
    max_runners: int = 0
    """Above `rollout.num_runners`, further runners are started while nodes with room for them join; 0 starts none."""
    wait_s: float = 0.0
    """Seconds to wait for nodes with room for all actors, asking an autoscaler for them; 0 fails at once."""


@dataclass(frozen=True)
class Config:
    """A run."""

    name: str = "run"
    """The run's folder is `<output>/<name>`."""
    output: str = "runs"
    """Folder that holds runs, or a URL such as s3://bucket/runs (docs/cluster.md)."""
    seed: int = 0
    """Seeds the worlds, the sampling of tasks, generation and the adapters."""
    backend: str = "ray"
    """`ray` (RLlib algorithm, runner and learner actors) or `local` (one process, for debugging)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    stages: tuple[StageConfig, ...] = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    judge: EndpointConfig | None = None
    """A server whose model judges answers, for a stage's reward and for `memr1 eval --judge`."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    stuck_after_s: float = 1800.0
    """A step, or a call of one runner or learner, that takes longer writes the stacks of its process to `<run>/stuck/`;
    0 switches that off."""
    tensorboard: bool = False
    """Mirror the metrics to TensorBoard files in the run folder (`pip install memr1[loggers]`)."""

    @property
    def run_dir(self) -> Path:
        """Folder of this run on this machine; for an `output` on an object store, its working copy."""
        return local_path(self.output) / self.name

    @property
    def cache_dir(self) -> Path:
        """Folder of what is made of data once and kept for all runs."""
        return Path(self.data.cache) if self.data.cache else local_path(self.output) / ".cache"


MAX_REFILL = 4
"""Times `prompts_per_step` that one round of refilling may play at most."""
ON_GPU = "on_gpu"
"""Top-level section of a YAML file with fields that are set only where the model runs on a GPU."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "backend": ("ray", "local"),
    "model.weights": ("lora", "full"),
    "data.kind": ("factworld", "locomo", "jsonl"),
    "memory.index": ("exact", "chroma"),
    "rollout.engine": ("transformers", "vllm"),
    "memory.on_reject": ("abort", "skip"),
    "agents.extractor": ("gold", "utterance", "llm"),
    "agents.protocol": ("lines", "json"),
    "algo.advantage": ("grpo", "dr-grpo", "rloo"),
    "algo.ratio": ("token", "sequence"),
    "algo.aggregation": ("token-mean", "sequence-mean", "trajectory-mean"),
    "algo.kl_in": ("loss", "reward"),
    "algo.critic.backbone": ("own", "policy"),
    "placement.gpus": ("shared", "apart"),
    "placement.strategy": ("spread", "pack", "strict-spread", "strict-pack"),
    "stages.role": ("answerer", "manager"),
    "stages.objective": ("sft", "grpo", "reinforce", "ppo"),
    "stages.schedule": ("constant", "linear", "cosine"),
    "stages.episode": ("decision", "replay"),
    "stages.bank": ("oracle", "manager", "add-everything"),
}

_AT_LEAST_ONE: dict[str, tuple[str, ...]] = {
    "rollout": (
        "num_runners",
        "prompts_per_step",
        "answer_max_new_tokens",
        "manager_max_new_tokens",
        "questions_per_decision",
        "max_tokens_per_batch",
    ),
    "learner": ("num_learners", "max_tokens_per_microbatch"),
    "memory": ("manager_top_k", "answerer_top_k"),
    "evaluation": ("num_worlds", "retrieval_top_k"),
    "checkpoint": ("every_steps", "keep"),
}


def load_config(path: str | Path | None = None, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides (OmegaConf dot-list), check everything.

    Raises MemR1Error that names the file, the field and what to do.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    data: dict[str, Any] = {}
    source = "config"
    if path is not None:
        source = str(path)
        if not Path(path).is_file():
            raise MemR1Error(f"{path}: no such config file. See configs/ for examples.")
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except Exception as error:  # YAML errors come in many types; all mean that the file cannot be read
            raise MemR1Error(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise MemR1Error(f"{path}: expected a mapping of fields at the top, found {type(loaded).__name__}")
        data = typing.cast("dict[str, Any]", loaded or {})
    on_gpu = data.pop(ON_GPU, None)
    try:
        for item in overrides:
            if "=" not in item:
                raise MemR1Error(f"override {item!r}: expected key=value, for example rollout.group_size=8")
        if on_gpu is not None:
            _build(Config, on_gpu, source, f"{ON_GPU}.")  # a typing error there shows on every machine
            if _runs_on_gpu(data, overrides):
                data = OmegaConf.to_container(OmegaConf.merge(data, on_gpu))  # type: ignore[assignment]
        merged = OmegaConf.merge(OmegaConf.create(data), _override_tree(overrides, data))
        tree = typing.cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, YAMLError) as error:
        raise MemR1Error(f"{source}, with overrides {' '.join(overrides)}: {' '.join(str(error).split())}") from error
    config = _build(Config, tree, source, "")
    validate(config, source)
    return config


def with_overrides(config: Config, changes: typing.Mapping[str, Any]) -> Config:
    """The configuration with some fields changed; keys as in overrides, such as `stages.0.learning_rate`.

    Raises MemR1Error as `load_config` does.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(dataclasses.asdict(config))
    try:
        for key, value in changes.items():
            plain = value.item() if hasattr(value, "item") else value  # samplers give numpy numbers
            OmegaConf.update(tree, key, plain, force_add=True)
    except OmegaConfBaseException as error:
        raise MemR1Error(f"overrides: {key}: {' '.join(str(error).split())}") from error
    changed = _build(Config, OmegaConf.to_container(tree), "overrides", "")
    validate(changed, "overrides")
    return typing.cast(Config, changed)


def _runs_on_gpu(data: dict[str, Any], overrides: typing.Sequence[str]) -> bool:
    """Whether `model.device` resolves to a GPU on this machine."""
    from memr1.models.registry import pick_device

    device: str = (data.get("model") or {}).get("device", "auto")
    for item in overrides:
        if item.startswith("model.device="):
            device = item.split("=", 1)[1]
    # an explicit `cuda` may be meant for the workers of a cluster whose head has none
    return device.startswith("cuda") or pick_device(device).type == "cuda"


def _override_tree(overrides: typing.Sequence[str], data: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    tree = OmegaConf.create(data)
    for item in overrides:
        key, value = item.split("=", 1)
        # OmegaConf parses the value as YAML would; list elements are reached as stages.0.steps
        parsed = OmegaConf.from_dotlist([f"value={value}"]).value
        OmegaConf.update(tree, key, parsed, force_add=True)
    return tree


def build_section(cls: type, value: Any, source: str) -> Any:
    """A dataclass of settings from plain values; `MemR1Error` names `source` and the field that is wrong."""
    return _build(cls, value, source, "")


def _build(cls: type, value: Any, source: str, prefix: str) -> Any:
    """Turn a plain mapping into the dataclass `cls`, checking names and types on the way."""
    where = prefix.rstrip(".") or "the file"
    if not isinstance(value, dict):
        raise MemR1Error(f"{source}: {where}: expected a mapping of {cls.__name__} fields, found {value!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; its fields are: {', '.join(sorted(known))}"
            raise MemR1Error(f"{source}: {prefix}{key} is not a field of {cls.__name__}{hint}")
    fields = {k: _coerce(hints[k], v, source, f"{prefix}{k}") for k, v in value.items()}
    try:
        return cls(**fields)
    except MemR1Error as error:  # some settings check themselves and do not know the file
        raise MemR1Error(f"{source}: {error}") from None


def _coerce(hint: Any, value: Any, source: str, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        as_list = isinstance(value, list | tuple)  # `str | tuple[str, ...]` takes one name or a list of names
        options = tuple(o for o in options if o is not type(None))
        chosen = next((o for o in options if (typing.get_origin(o) is tuple) == as_list), options[0])
        return _coerce(chosen, value, source, name)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, source, f"{name}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise MemR1Error(f"{source}: {name}: expected a list, found {value!r}")
        args = typing.get_args(hint)
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise MemR1Error(f"{source}: {name}: expected {len(args)} values, found {len(value)}")
        item = args[0]
        return tuple(_coerce(item, v, source, f"{name}.{i}") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise MemR1Error(f"{source}: {name}: expected a mapping, found {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        try:  # YAML reads 2e-4 as text
            return float(value)
        except ValueError:
            pass
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise MemR1Error(f"{source}: {name}: expected {hint.__name__}, found {value!r}")
    return value


def validate(config: Config, source: str = "config") -> None:
    """Check values and combinations; MemR1Error names the field and the remedy."""

    def need(ok: bool, name: str, message: str) -> None:
        if not ok:
            raise MemR1Error(f"{source}: {name}: {message}")

    def check_choices(obj: Any, prefix: str, key_prefix: str) -> None:
        for f in dataclasses.fields(obj):
            value = getattr(obj, f.name)
            key = f"{key_prefix}{f.name}"
            if key in _CHOICES:
                near = difflib.get_close_matches(str(value), _CHOICES[key], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                need(value in _CHOICES[key], f"{prefix}{f.name}", f"{value!r} is not one of {_CHOICES[key]}{hint}")
            elif dataclasses.is_dataclass(value):
                check_choices(value, f"{prefix}{f.name}.", f"{key_prefix}{f.name}.")

    check_choices(config, "", "")
    for i, stage in enumerate(config.stages):
        try:
            make_reward(stage.reward, judge=None if config.judge is None else lambda *_: (None, None))
        except MemR1Error as error:
            raise MemR1Error(f"{source}: stages.{i}.{error}") from None
        check_choices(stage, f"stages.{i}.", "stages.")
        need(stage.steps >= 1, f"stages.{i}.steps", f"must be at least 1, is {stage.steps}; remove the stage instead")
        need(stage.learning_rate > 0, f"stages.{i}.learning_rate", f"must be above 0, is {stage.learning_rate}")
        need(stage.examples_per_step >= 1, f"stages.{i}.examples_per_step", "must be at least 1")
        need(
            stage.role != "answerer" or config.agents.answerer_endpoint is None,
            f"stages.{i}.role",
            "an answerer that speaks through agents.answerer_endpoint cannot be trained; remove one of the two",
        )
        need(
            stage.episode == "decision" or (stage.role == "manager" and stage.objective != "sft"),
            f"stages.{i}.episode",
            "replay is for managers that learn from rewards; demonstrations are single decisions",
        )
        need(stage.replay_turns >= 0, f"stages.{i}.replay_turns", f"must be at least 0, is {stage.replay_turns}")
        need(
            stage.traces is None or stage.objective == "sft",
            f"stages.{i}.traces",
            f"are cloned, so they need objective=sft, not {stage.objective}",
        )
        need(stage.evidence_reward >= 0, f"stages.{i}.evidence_reward", "must be at least 0")
        need(
            stage.evidence_reward == 0 or (stage.role == "answerer" and config.agents.distillation),
            f"stages.{i}.evidence_reward",
            "pays the selection of an answerer; it needs role=answerer and agents.distillation=true",
        )
        need(stage.epochs >= 1, f"stages.{i}.epochs", f"must be at least 1, is {stage.epochs}")
    _validate_algo(config, need)
    for name in config.evaluation.systems:
        try:
            get_system(name)
        except MemR1Error as error:
            raise MemR1Error(f"{source}: {error}") from None
    r = config.rollout
    compares = not config.stages or any(s.objective == "grpo" and s.group_size == 0 for s in config.stages)
    need(
        r.group_size >= (2 if compares else 1),
        "rollout.group_size",
        f"must be at least 2, is {r.group_size}: GRPO compares a rollout with others of its group",
    )
    for section, names in _AT_LEAST_ONE.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            need(value >= 1, f"{section}.{name}", f"must be at least 1, is {value}")
    need(r.resample_rounds >= 0, "rollout.resample_rounds", f"must be at least 0, is {r.resample_rounds}")
    need(r.max_staleness in (0, 1), "rollout.max_staleness", f"must be 0 or 1, is {r.max_staleness}")
    need(
        r.max_staleness == 0 or config.algo.importance_cap > 0,
        "rollout.max_staleness",
        "1 needs algo.importance_cap above 0: without the correction, groups played with older weights bias the update",
    )
    need(
        0 < r.vllm_memory_fraction <= 1,
        "rollout.vllm_memory_fraction",
        f"must be above 0 and at most 1, is {r.vllm_memory_fraction}",
    )
    need(r.temperature > 0, "rollout.temperature", f"must be above 0, is {r.temperature}; evaluation is greedy anyway")
    need(r.max_prompt_tokens >= 64, "rollout.max_prompt_tokens", f"must be at least 64, is {r.max_prompt_tokens}")
    need(
        config.agents.extractor_endpoint is None or config.agents.extractor == "llm",
        "agents.extractor_endpoint",
        "needs agents.extractor=llm; nothing else asks a model for facts",
    )
    generated = config.data.kind == "factworld"
    need(generated or config.data.path is not None, "data.path", f"{config.data.kind} needs a file to read")
    need(config.data.window >= 0, "data.window", f"must be at least 0, is {config.data.window}")
    need(config.seed >= 0, "seed", f"must be at least 0, is {config.seed}")
    need(config.model.dtype in ("auto", "float32", "bfloat16"), "model.dtype", "must be auto, float32 or bfloat16")
    need(bool(config.evaluation.systems), "evaluation.systems", "names no system; see `memr1 eval --list-systems`")
    for i, stage in enumerate(config.stages):
        need(stage.warmup_steps >= 0, f"stages.{i}.warmup_steps", f"must be at least 0, is {stage.warmup_steps}")
        need(
            stage.prompts_per_step >= 0,
            f"stages.{i}.prompts_per_step",
            f"must be at least 0, is {stage.prompts_per_step}; 0 takes rollout.prompts_per_step",
        )
        need(
            stage.group_size == 0 or stage.group_size >= (2 if stage.objective == "grpo" else 1),
            f"stages.{i}.group_size",
            f"must be 0 or at least 2, is {stage.group_size}",
        )
        plays = r.prompts_per_step * (stage.group_size or r.group_size)
        sequences = stage.examples_per_step if stage.objective == "sft" else plays
        need(
            sequences >= config.learner.num_learners,
            "learner.num_learners",
            f"is {config.learner.num_learners}, and a step of stages.{i} has {sequences} sequences: some learners "
            "would never have any. Take fewer, or larger batches",
        )
    need(config.learner.zero_stage in (0, 1, 2, 3), "learner.zero_stage", "must be 0, 1, 2 or 3")
    need(
        config.learner.zero_stage > 0 or not config.learner.offload_optimizer,
        "learner.offload_optimizer",
        "needs learner.zero_stage of at least 1",
    )
    need(0 <= config.memory.pressure < 1, "memory.pressure", f"must be in [0, 1), is {config.memory.pressure}")
    for name, claim in (("runners", config.placement.runners), ("learners", config.placement.learners)):
        for resource in ("cpus", "gpus"):
            amount = getattr(claim, resource)
            key = f"placement.{name}.{resource}"
            need(amount is None or amount >= 0, key, f"must be at least 0, is {amount}")
            whole = amount is None or amount <= 1 or amount == int(amount)
            need(whole, key, f"must be whole above 1, is {amount}: Ray takes fractions of one only")
    need(config.stuck_after_s >= 0, "stuck_after_s", f"must be at least 0, is {config.stuck_after_s}")
    need(config.placement.wait_s >= 0, "placement.wait_s", f"must be at least 0, is {config.placement.wait_s}")
    need(config.placement.max_runners >= 0, "placement.max_runners", "must be at least 0")
    need(
        config.learner.max_grad_norm > 0, "learner.max_grad_norm", f"must be above 0, is {config.learner.max_grad_norm}"
    )


def _validate_algo(config: Config, need: Callable[[bool, str, str], None]) -> None:
    """The part of `validate` that concerns objectives and their settings."""
    algo, critic = config.algo, config.algo.critic
    need(0 <= algo.clip_low < 1, "algo.clip_low", f"must be in [0, 1), is {algo.clip_low}")
    for name in ("clip_high", "kl_coef", "importance_cap"):
        value = getattr(algo, name)
        need(value >= 0, f"algo.{name}", f"must be at least 0, is {value}")
    need(algo.dual_clip == 0 or algo.dual_clip > 1, "algo.dual_clip", f"must be 0 or above 1, is {algo.dual_clip}")
    need(
        algo.ratio == "token" or algo.aggregation == "sequence-mean",
        "algo.ratio",
        "sequence needs algo.aggregation=sequence-mean: GSPO gives every sequence one weight",
    )
    need(critic.learning_rate > 0, "algo.critic.learning_rate", f"must be above 0, is {critic.learning_rate}")
    need(critic.warmup_steps >= 0, "algo.critic.warmup_steps", f"must be at least 0, is {critic.warmup_steps}")
    need(critic.clip >= 0, "algo.critic.clip", f"must be at least 0, is {critic.clip}")
    for name in ("discount", "gae_lambda"):
        value = getattr(critic, name)
        need(0 <= value <= 1, f"algo.critic.{name}", f"must be in [0, 1], is {value}")
    for i, stage in enumerate(config.stages):
        if stage.objective == "ppo":
            need(
                critic.warmup_steps < stage.steps,
                "algo.critic.warmup_steps",
                f"is {critic.warmup_steps} and stages.{i}.steps is {stage.steps}: the policy would never be updated",
            )
            need(
                algo.ratio == "token",
                "algo.ratio",
                f"sequence does not go with the ppo of stages.{i}: a critic gives every token its own advantage",
            )
        elif stage.objective != "sft":
            need(
                stage.objective == "grpo" or stage.epochs == 1,
                f"stages.{i}.epochs",
                f"must be 1 with reinforce, is {stage.epochs}: nothing would bound the passes after the first",
            )
            need(
                algo.kl_in == "loss",
                "algo.kl_in",
                f"reward goes with ppo only, and stages.{i} is {stage.objective}; set it to loss",
            )


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; reading it back gives an equal config."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
