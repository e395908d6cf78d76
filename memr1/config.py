"""The whole configuration of a run as typed, frozen dataclasses. Read by `memr1.config_file`, checked by
`memr1.config_checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from memr1.data.factworld import FactWorldConfig
from memr1.models.adapters import LoraSettings
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
    cannot be parsed or is rejected, but only where every answer is right (in a replay, for each decision on average, in
    proportion to how right its answers are): being right comes first, thrift second. 0 is the paper's outcome-only
    reward, under which adding everything is nearly free while banks are small. 0.05 to 0.2."""
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
    parts_per_runner: int = 1
    """Parts that a runner's share of a step is cut in. With more of them, quick runners take over from slow and lost
    ones; with fewer, each is generated in larger batches. Changes no rollout."""
    engine: str = "transformers"
    """What generates: `transformers` (built in, CPU and GPU) or `vllm` (an optional extra, see docs/install.md)."""
    vllm_memory_fraction: float = 0.5
    """Share of a GPU's memory that vLLM takes for weights and key-value cache; the rest is left to a learner."""
    weight_transfer: str = "auto"
    """How new weights reach Ray runners: `objects` through Ray's object store, `collective` by a broadcast, from GPU to
    GPU with NCCL, between CPUs with gloo. `auto`: `collective` where every runner and learner has a GPU of its own."""
    verify_weights: bool = True
    """Check every byte of weights that reach a Ray runner by a checksum, besides names and shapes: 1 s for each GB."""
    push_timeout_s: float = 300.0
    """Seconds that a Ray runner has to take new weights; one that takes longer is replaced. In a collective, learner
    and runners wait for each other for a fifth of it; the object store takes over then."""
    prompts_per_step: int = 8
    """Distinct tasks played in one training step; each is played `group_size` times."""
    group_size: int = 8
    """Rollouts per task that share a snapshot; GRPO compares them with one another. 4 to 16, at least 2
    for GRPO."""
    questions_per_decision: int = 6
    """Questions that judge one decision of the manager: first one on the turn, then one on each old entry in sight,
    which a wrong operation would hit, then others on the turn. With fewer than 1 + `memory.manager_top_k`, some entries
    are not watched; `memr1 data build` counts the questions that are left out."""
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
    `aggregation: sequence-mean`, episodes of one step, and far narrower clips, such as 3e-4 and 4e-4."""
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
    """DeepSpeed ranks; each takes one GPU where there are GPUs. `backend: local` has one."""
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
    """Least reward of a trace that is cloned, where it has one; in a run's rollouts before `memory.pressure` is taken
    off."""
    evidence_reward: float = 0.0
    """Of an answerer: the weight in the reward of the F1 of the selected memories against those shown that hold
    evidence. 0 is the paper's outcome-only reward."""
    shuffle_rewards: bool = False
    """A negative control: the rewards of each group are dealt anew among its members, so there is nothing to learn."""
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
    """What is measured at the end of a run: on the validation split of the run's data where they are a file that has
    one, else on generated worlds."""

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
    retrieval_top_k: int = 0
    """Turns shown by `bm25`, `embedding` and `hybrid`; 0 is `memory.answerer_top_k`, the budget of all systems."""
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
    """Where actors go on a Ray cluster. Rewards and the frozen role live in every runner, unless `judge` and
    `agents.answerer_endpoint` name servers; the reference of the KL lives in every learner (docs/cluster.md)."""

    runners: ClaimConfig = field(default_factory=ClaimConfig)
    """Each runner."""
    learners: ClaimConfig = field(default_factory=ClaimConfig)
    """Each learner."""
    embedders: ClaimConfig = field(default_factory=ClaimConfig)
    """Each embedder of `num_embedders`. It computes on the CPU, with a thread for each CPU that it claims, unless it
    claims a GPU, or a share of one, here."""
    num_embedders: int = 0
    """Actors that embed for all runners; 0 has every runner embed for itself, on the CPU. For a `memory.embedder` that
    is too large to be held by every runner, or that needs a GPU."""
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
    """A step, or a call of one runner, learner or embedder, that takes longer writes the stacks of its process to
    `<run>/stuck/`; 0 switches that off."""
    tensorboard: bool = False
    """Mirror the metrics to TensorBoard files in the run folder (`pip install memr1[loggers]`)."""

    @property
    def run_dir(self) -> Path:
        """Folder of this run on this machine; for an `output` on an object store, its working copy."""
        return local_path(self.output) / self.name

    @property
    def turns_shown(self) -> int:
        """Turns that baselines which retrieve raw turns show for a question."""
        return self.evaluation.retrieval_top_k or self.memory.answerer_top_k

    @property
    def cache_dir(self) -> Path:
        """Folder of what is made of data once and kept for all runs."""
        return local_path(self.data.cache) if self.data.cache else local_path(self.output) / ".cache"


MAX_REFILL = 4
"""Times `prompts_per_step` that one round of refilling may play at most."""
