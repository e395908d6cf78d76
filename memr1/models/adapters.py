"""PolicyModel: one set of weights per role over a base model, and the switch between them.

Mode `lora` keeps one LoRA adapter per role over a single shared base; mode `full` keeps a whole copy of the model per
role. The learner trains through it, the transformers rollout engine generates through it, and `base` is always there
as the reference of the KL term. One PolicyModel belongs to one thread. Knows nothing of optimizers or sharding: under
ZeRO-3 the parameters are not whole, so gather them before `weights` and `save`.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.models import weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

BASE = "base"
_ROLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters; the same for every role (LoRA, arXiv 2106.09685)."""

    rank: int = 16
    """Rank of the update matrices. 8 to 64; RL needs little."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the linear modules that get an adapter; `all-linear` is all of them but the output head."""
    dropout: float = 0.0
    """Dropout in front of the adapters in `sft` stages. With RL it must be 0: the trainer's log-probabilities must be
    those that the rollout sampled from."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0.0 <= self.dropout < 1.0:
            raise MemR1Error(f"lora: rank >= 1, alpha > 0 and 0 <= dropout < 1 are needed, got {self}")


class PolicyModel:
    """Weights by role over one base model. Make it with `PolicyModel.create`."""

    def __init__(
        self,
        *,
        mode: str,
        roles: tuple[str, ...],
        source: str,
        modules: dict[str, nn.Module],
        parameters: dict[str, dict[str, nn.Parameter]],
        load_base: Callable[[], nn.Module] | None,
        peft_model: Any = None,
    ) -> None:
        self.mode = mode
        """`lora` or `full`."""
        self.roles = roles
        self.source = source
        """The name the model was created from, or its class where it was handed in as a module."""
        self._modules = modules  # lora: every policy maps to the one shared module
        self._parameters = parameters  # role -> name without the adapter's own name -> parameter
        self._load_base = load_base  # full: brings the untouched base when it is first used
        self._peft = peft_model
        self._active = BASE
        self._training: str | None = None
        self._merged: dict[str, tuple[Any, dict[Any, torch.Tensor]]] = {}

    @classmethod
    def create(
        cls,
        model: str | PreTrainedModel,
        roles: Sequence[str],
        mode: str = "lora",
        lora: LoraSettings | None = None,
        seed: int = 0,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        attn_implementation: str | None = None,
    ) -> PolicyModel:
        """A policy per role over `model`, all equal to the base at the start, in eval mode, nothing trainable.

        model: a name for `load_causal_lm`, or a loaded model, which is taken over: do not use it afterwards.
        roles: distinct names; `base` is reserved for the untouched model.
        mode: `lora` or `full`. lora: shape of the adapters, `LoraSettings()` when None; unused in mode `full`.
        seed: decides the random half of each adapter, by role name, whatever other roles there are.
        dtype, device, attn_implementation: as for `load_causal_lm`; unused when `model` is a loaded model. Adapters are
        float32 whatever the base is.
        Every dropout of the base is set to 0. Raises MemR1Error for bad roles or modes and for an unsuitable model.
        """
        roles = tuple(roles)
        _check_roles(roles)
        if mode not in ("lora", "full"):
            raise MemR1Error(f"mode {mode!r} is unknown; use lora or full")

        def load() -> nn.Module:
            from memr1.models.registry import load_causal_lm

            assert isinstance(model, str)
            return _frozen(load_causal_lm(model, dtype, device, attn_implementation=attn_implementation))

        if mode == "lora":
            base = load() if isinstance(model, str) else _frozen(model)
            return cls._create_lora(base, _source(model), roles, lora or LoraSettings(), seed)
        return cls._create_full(model, roles, load)

    @classmethod
    def _create_lora(
        cls, base: Any, source: str, roles: tuple[str, ...], settings: LoraSettings, seed: int
    ) -> PolicyModel:
        import torch
        from peft import LoraConfig, get_peft_model

        from memr1.models.registry import quiet_loading

        targets = settings.target_modules
        if not isinstance(targets, str):
            _check_targets(base, targets, source)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            bias="none",
            task_type="CAUSAL_LM",
        )
        devices = [base.device] if base.device.type == "cuda" else []
        peft_model: Any = None
        for role in roles:
            with torch.random.fork_rng(devices=devices), quiet_loading():
                torch.manual_seed(seed * 1_000_003 + zlib.crc32(role.encode()))
                try:
                    if peft_model is None:
                        peft_model = get_peft_model(base, copy.copy(config), adapter_name=role)
                    else:
                        peft_model.add_adapter(role, copy.copy(config))
                except ValueError as e:  # peft's message names the modules that were asked for and not found
                    raise MemR1Error(f"lora.target_modules={targets!r} does not fit {source}: {e}") from e
        parameters = {role: weight_files.adapter_parameters(peft_model, role) for role in roles}
        shared = peft_model.get_base_model()
        policy = cls(
            mode="lora",
            roles=roles,
            source=source,
            modules=dict.fromkeys((BASE, *roles), shared),
            parameters=parameters,
            load_base=None,
            peft_model=peft_model,
        )
        peft_model.base_model.disable_adapter_layers()  # `_active` starts as base
        policy.eval_only()
        return policy

    @classmethod
    def _create_full(
        cls, model: str | PreTrainedModel, roles: tuple[str, ...], load: Callable[[], nn.Module]
    ) -> PolicyModel:
        modules: dict[str, nn.Module] = {}
        if not isinstance(model, str):
            modules[BASE] = _frozen(model)
        for role in roles:
            modules[role] = load() if isinstance(model, str) else copy.deepcopy(modules[BASE])
        return cls(
            mode="full",
            roles=roles,
            source=_source(model),
            modules=modules,
            parameters={role: dict(modules[role].named_parameters()) for role in roles},
            load_base=load if isinstance(model, str) else None,
        )

    def policies(self) -> list[str]:
        """Names that `use` accepts: `base`, then the roles."""
        return [BASE, *self.roles]

    @contextmanager
    def use(self, policy: str) -> Iterator[PreTrainedModel]:
        """Gives the model to call as `policy` while the context lasts (the plain causal LM, not a wrapper).

        In mode `lora` this is one shared module whatever the policy, so do not keep it beyond the context, and run
        `backward` inside it when activations are recomputed (gradient checkpointing). Contexts nest. What is trainable
        does not change.
        """
        self._check_policy(policy)
        if self.mode == "full":
            yield self._module(policy)
            return
        previous = self._active
        self._activate(policy)
        try:
            yield self._module(policy)
        finally:
            self._activate(previous)

    @contextmanager
    def use_merged(self, policy: str) -> Iterator[PreTrainedModel]:
        """Like `use`, for generating without gradients: on a CPU in float32 the adapter is added into the weights.

        Two thin products and two additions per layer are then saved, which on a CPU cost as much as the layer. The
        merged weights are kept until the adapter changes, and swapped in without copying: one more copy of the adapted
        weights per role. Where the processor prefers it (`memr1.models.cpu`), that copy is packed for its kernels, and
        so is one of the other linear layers, for all roles. Elsewhere (GPUs, low precision, mode `full`, `base`) this
        is `use`.
        """
        from memr1.models.cpu import computing_with

        with self.use(policy) as model:
            first = next(model.parameters())
            plain = self.mode == "full" or policy == BASE or first.device.type != "cpu"
            merged = None if plain or str(first.dtype) != "torch.float32" else self._merged_weights(policy, model)
            if merged is None:
                yield model
                return
            self._activate(BASE)  # the merged weights hold the adapter: it must not be added a second time
            try:
                with computing_with(merged):
                    yield model
            finally:
                self._activate(policy)  # adapters on again, also where `use` was entered by somebody further out

    def _merged_weights(self, policy: str, model: Any) -> dict[Any, torch.Tensor] | None:
        """For `computing_with`: weights of adapted layers with the adapter added; None where one is not linear."""
        from torch import nn

        from memr1.models.cpu import gains, pack, prefers_packed

        def packs(weight: torch.Tensor) -> bool:
            return prefers_packed() and gains(weight)

        adapted = [m for m in model.modules() if hasattr(m, "lora_A")]
        if policy not in self._merged or self._merged[policy][0] != self.state_of(policy):
            tied = {id(e.weight) for e in model.modules() if isinstance(e, nn.Embedding)}
            if any(not isinstance(m.base_layer, nn.Linear) or id(m.base_layer.weight) in tied for m in adapted):
                return None
            self._merged.pop(policy, None)  # never two copies at a time
            weights = {}
            for m in adapted:
                weight = m.base_layer.weight.data + m.get_delta_weight(policy).detach()
                weights[m.base_layer] = pack(weight) if packs(weight) else weight
            self._merged[policy] = (self.state_of(policy), weights)
        if BASE not in self._merged:
            own = {id(part) for m in adapted for part in m.modules()}
            rest = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in own]
            self._merged[BASE] = (self.state_of(BASE), {m: pack(m.weight) for m in rest if packs(m.weight)})
        return self._merged[BASE][1] | self._merged[policy][1]

    def forget_merged(self) -> None:
        """Free what `use_merged` keeps; it is made again when it is next asked for."""
        self._merged = {}

    def share_base(self, other: PolicyModel) -> None:
        """Take the frozen weights of another policy model of this process for one's own, and free the latter.

        Both read them and neither writes them, so nothing else changes. Weights of another type, on another device or
        in shards stay one's own, and so do all in mode `full`. ValueError for a policy model of another source.
        """
        if self.source != other.source:
            raise ValueError(f"{self.source} and {other.source} have not the same frozen weights")
        theirs = other._frozen_parameters()
        for name, p in self._frozen_parameters().items():
            of = theirs.get(name)
            if of is not None and (p.shape, p.dtype, p.device) == (of.shape, of.dtype, of.device):
                p.data = of.data

    def _frozen_parameters(self) -> dict[str, nn.Parameter]:
        if self.mode == "full":
            return {}
        own = {id(p) for parameters in self._parameters.values() for p in parameters.values()}
        return {name: p for name, p in self._modules[BASE].named_parameters() if id(p) not in own}

    def state_of(self, policy: str) -> tuple[Any, ...]:
        """Something that is equal as long as a policy's weights have not changed: caches made with them are good."""
        self._check_policy(policy)
        # torch counts in-place changes of a tensor: an adapter that was loaded or trained has another state
        return tuple((id(p), p._version) for p in self._parameters.get(policy, {}).values())

    @property
    def adapter_rank(self) -> int:
        """Rank of the adapters; mode `lora` only."""
        return int(self._peft.peft_config[self.roles[0]].r)

    def module(self, role: str) -> PreTrainedModel:
        """The module that holds a role's parameters, for handing to an optimizer engine; call it only inside `use`."""
        self._check_policy(role)
        return self._module(role)

    def trainable_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's own parameters by the names that `weights` uses."""
        self._check_role(role)
        return dict(self._parameters[role])

    def train_only(self, role: str) -> None:
        """Let gradients reach `role`'s parameters and no others, and put its module in train mode."""
        self._check_role(role)
        self.eval_only()
        self._training = role
        self._mark_trainable()
        self._modules[role].train()

    def eval_only(self) -> None:
        """Nothing trainable, every module in eval mode."""
        self._training = None
        self._mark_trainable()
        for module in self._modules.values():
            module.eval()

    def weights(self, role: str) -> dict[str, torch.Tensor]:
        """Copies of a role's weights on the CPU. Adapter names are without the role's name, as in peft's files."""
        self._check_role(role)
        return {name: p.detach().to("cpu", copy=True) for name, p in self._parameters[role].items()}

    def views(self, role: str) -> dict[str, torch.Tensor]:
        """A role's weights as they lie in its parameters: what changes these changes the others."""
        self._check_role(role)
        return {name: p.detach() for name, p in self._parameters[role].items()}

    def load_weights(self, role: str, weights: dict[str, torch.Tensor]) -> None:
        """Overwrite a role's weights in place; types and devices are converted.

        Raises MemR1Error, with nothing changed, listing every name that is missing, unknown or of another shape.
        """
        self._check_role(role)
        weight_files.copy_into(self._parameters[role], weights, f"weights for role {role!r}")

    def add_copy(self, name: str, of: str) -> None:
        """Another policy with a copy of the weights of role `of`. For mode `lora`; ValueError in mode `full`."""
        import torch

        if self.mode != "lora":
            raise ValueError("a full copy is a model of its own: create one with PolicyModel.create")
        _check_roles((*self.roles, name))
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
            self._peft.add_adapter(name, copy.copy(self._peft.peft_config[of]))
        self.roles = (*self.roles, name)
        self._modules[name] = self._modules[of]
        self._parameters[name] = weight_files.adapter_parameters(self._peft, name)
        self._mark_trainable()
        self.copy_weights(of, name)

    def copy_weights(self, src_role: str, dst_role: str) -> None:
        """Make `dst_role` equal to `src_role`, for example to freeze a reference after a warm start."""
        self._check_role(src_role)
        self.load_weights(dst_role, {name: p.detach() for name, p in self._parameters[src_role].items()})

    def save(self, role: str, directory: str | Path) -> None:
        """Write a role to `directory`: a peft adapter in mode `lora`, a transformers model in mode `full`."""
        self._check_role(role)
        directory = Path(directory)
        if self.mode == "lora":
            config = copy.copy(self._peft.peft_config[role])
            if self._named_source:  # peft wrote the directory it was loaded from, which other machines do not have
                config.base_model_name_or_path = self.source
            weight_files.save_adapter(directory, config, self.weights(role))
        else:
            self._module(role).save_pretrained(directory)
            self._save_tokenizer(directory)

    def load(self, role: str, directory: str | Path) -> None:
        """Read what `save` wrote, or an adapter or model that other tools wrote in those formats, into `role`.

        Raises MemR1Error when files are missing, or names, shapes or (for adapters) scaling do not fit this model.
        """
        self._check_role(role)
        directory = Path(directory)
        if self.mode == "lora":
            loaded = weight_files.read_adapter(directory, self._peft.peft_config[role])
        else:
            loaded = weight_files.read_model(directory)
        weight_files.copy_into(self._parameters[role], loaded, str(directory))

    def export_merged(self, role: str, directory: str | Path) -> None:
        """Write a role as a plain transformers model (adapter merged in, in the base's type), with its tokenizer."""
        self._check_role(role)
        directory = Path(directory)
        if self.mode == "full":
            self.save(role, directory)
            return
        weight_files.save_merged(directory, self._module(role), role)
        self._save_tokenizer(directory)

    def _save_tokenizer(self, directory: Path) -> None:
        if self._named_source:
            from memr1.models.registry import load_tokenizer

            load_tokenizer(self.source, chat=False).save_pretrained(directory)

    @property
    def _named_source(self) -> bool:
        return not self.source.startswith("module ")

    def _module(self, policy: str) -> Any:
        if policy not in self._modules:  # only `base` in mode full, created from a name
            assert self._load_base is not None
            self._modules[policy] = self._load_base()
        return self._modules[policy]

    def _activate(self, policy: str) -> None:
        """Point the shared module at a policy. peft makes the active adapter trainable by itself: undo that."""
        if policy == self._active:
            return
        if policy == BASE:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(policy)
        self._active = policy
        self._mark_trainable()

    def _mark_trainable(self) -> None:
        for role, parameters in self._parameters.items():
            for p in parameters.values():
                p.requires_grad_(role == self._training)

    def _check_role(self, role: str) -> None:
        if role not in self.roles:
            raise MemR1Error(f"{role!r} is not a role of this model; its roles are {', '.join(self.roles)}")

    def _check_policy(self, policy: str) -> None:
        if policy != BASE and policy not in self.roles:
            raise MemR1Error(f"{policy!r} is not a policy of this model; there are {', '.join(self.policies())}")


def _source(model: str | PreTrainedModel) -> str:
    return model if isinstance(model, str) else f"module {type(model).__name__}"


def _check_roles(roles: tuple[str, ...]) -> None:
    if not roles or len(set(roles)) != len(roles):
        raise MemR1Error(f"roles: at least one and all distinct are needed, got {list(roles)}")
    for role in roles:
        if role == BASE or not _ROLE_NAME.fullmatch(role):
            raise MemR1Error(f"roles: {role!r} is not usable; letters, digits, - and _ only, and not {BASE!r}")


def _check_targets(base: Any, targets: Sequence[str], source: str) -> None:
    """Every name must match a module: peft is content when one of them does."""
    from torch import nn

    names = [name for name, _ in base.named_modules()]
    missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        linear = sorted({name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, nn.Linear)})
        raise MemR1Error(
            f"lora.target_modules: {', '.join(missing)} match nothing in {source}; its linear modules are "
            f"{', '.join(linear)}"
        )


def _frozen(model: Any) -> Any:
    """`model` in eval mode, without gradients and without dropout (train mode must not change its outputs), with the
    products that this processor is fastest with."""
    from torch import nn

    from memr1.models.cpu import prefers_onednn, use_onednn

    if prefers_onednn():
        use_onednn(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model.requires_grad_(False).eval()
