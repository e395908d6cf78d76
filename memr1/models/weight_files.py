"""Reads and writes the weights of one policy: strict copies, peft adapter files, merged models.

Called by `memr1.models.adapters`. Every mismatch is an error that lists the names: a weight silently left as it was is
the most expensive kind of bug in RL.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error

if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def adapter_parameters(peft_model: nn.Module, role: str) -> dict[str, nn.Parameter]:
    """Parameters of adapter `role`, named as in peft's files: `...q_proj.lora_A.weight`, without the adapter's name."""
    named = {}
    for name, parameter in peft_model.named_parameters():
        parts = name.split(".")
        for i in range(1, len(parts)):
            if parts[i] == role and parts[i - 1].startswith("lora_"):
                named[".".join(parts[:i] + parts[i + 1 :])] = parameter
                break
    return named


def copy_into(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy `weights` into `parameters` in place, all or nothing.

    Raises MemR1Error that begins with `what` and lists names missing from `weights`, unknown ones and wrong shapes.
    """
    import torch

    missing = [name for name in parameters if name not in weights]
    extra = [name for name in weights if name not in parameters]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(p.shape)}"
        for name, p in parameters.items()
        if name in weights and weights[name].shape != p.shape
    ]
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (("missing", missing), ("unknown", extra), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise MemR1Error(f"{what} do not fit this model; {'; '.join(problems)}")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors over the memory of numpy arrays, to copy from; tensors as they are. Arrays out of shared memory are
    read-only, which torch does not know: never write to these."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return {n: a if isinstance(a, torch.Tensor) else torch.from_numpy(a) for n, a in arrays.items()}


def save_adapter(directory: Path, config: Any, weights: dict[str, torch.Tensor]) -> None:
    """Write an adapter as `PeftModel.from_pretrained` reads it."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(directory)
    save_file({n: w.contiguous() for n, w in weights.items()}, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def read_adapter(directory: Path, expected: Any) -> dict[str, torch.Tensor]:
    """Weights of the adapter in `directory`. Raises MemR1Error when files are missing or it scales differently."""
    config_file = directory / ADAPTER_CONFIG
    if not config_file.is_file():
        raise MemR1Error(f"{directory}: has no {ADAPTER_CONFIG}, so it is not a peft adapter")
    try:
        found = json.loads(config_file.read_text())
    except ValueError as e:
        raise MemR1Error(f"{config_file}: is not JSON ({e})") from e
    # Names and shapes are compared on loading; these change what the same weights mean and leave no trace there.
    for field in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias"):
        default = getattr(expected, field)
        wanted = getattr(default, "value", default)
        if found.get(field, wanted) != wanted:
            raise MemR1Error(
                f"{config_file}: {field} is {found[field]!r} and this model's adapters have {wanted!r}; create the "
                f"model with the same LoRA settings as the adapter"
            )
    return _read_safetensors(directory / ADAPTER_WEIGHTS)


def read_model(directory: Path) -> dict[str, torch.Tensor]:
    """Parameters of the transformers model in `directory`, whether in one file or in shards.

    A tied output head that other tools write a second time is dropped.
    """
    index = directory / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    )
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights.update(_read_safetensors(directory / file))
    tied = _tied_names(directory)
    return {n: w for n, w in weights.items() if n not in tied}


def _tied_names(directory: Path) -> set[str]:
    config = directory / "config.json"
    if not config.is_file():
        raise MemR1Error(f"{directory}: has no config.json, so it is not a transformers model")
    return {"lm_head.weight"} if json.loads(config.read_text()).get("tie_word_embeddings") else set()


def save_merged(directory: Path, module: Any, role: str) -> None:
    """Write the model with adapter `role` added into its weights, computed in float32, leaving `module` untouched."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {name: m for name, m in module.named_modules() if isinstance(m, BaseTunerLayer)}
    merged: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if any(part.startswith("lora_") for part in name.split(".")):
                continue
            owner, _, leaf = name.rpartition(".base_layer.")
            value = tensor.detach()
            if owner in layers and leaf == "weight":
                delta = layers[owner].get_delta_weight(role).float()
                value = (value.float() + delta).to(tensor.dtype)
            merged[name.replace(".base_layer.", ".")] = value.cpu()
    with torch.device("meta"):
        plain = type(module)(module.config)
    plain.to(dtype=module.dtype)
    plain.load_state_dict(merged, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = module.generation_config
    plain.save_pretrained(directory)


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise MemR1Error(f"{file}: does not exist; the directory is incomplete or of another format")
    try:
        return load_file(file)
    except SafetensorError as e:
        raise MemR1Error(f"{file}: is damaged ({e}); restore it from another checkpoint") from e


def _some(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
