"""Turns the name of a model in a config into weights and a tokenizer, on the right device and in the right type.

A name is a built-in model (`smollm2-135m`), a directory, or the id of a model hub (`org/name`). Called by the rollout
engines, the learner, the embedder and serving. Does not hold policies: see `memr1.models.adapters`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.models import packaged
from memr1.models.attention import text_config

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DTYPES = {
    "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16",
}  # fmt: skip


@dataclass(frozen=True)
class ModelInfo:
    """A line of `memr1 models list`."""

    name: str
    kind: str
    """`causal-lm` or `embedder`."""
    licence: str
    source: str
    """The package it comes from, or `generated`."""
    description: str
    path: Path | None
    """Directory in the cache; None while it has not been fetched."""
    size_bytes: int
    """Space it takes in the cache; 0 while it has not been fetched."""


def registered_models() -> list[ModelInfo]:
    """The built-in models, fetched or not. Touches no network."""
    infos = []
    for model in packaged.MODELS.values():
        path = packaged.cached(model.name)
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path else 0
        source = f"{model.distribution}=={model.version}" if isinstance(model, packaged.PackagedModel) else "generated"
        infos.append(ModelInfo(model.name, model.kind, model.licence, source, model.description, path, size))
    return infos


def resolve_model(name: str) -> str:
    """What to hand to `from_pretrained` for `name`.

    A built-in name gives its directory (fetched if need be), an existing directory itself, an id like `org/name` is
    returned as it is. Raises MemR1Error for anything else, with the nearest built-in names.
    """
    if name in packaged.MODELS:
        return str(packaged.fetch(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MemR1Error(f"{name}: is a directory without config.json, so not a transformers model")
        return str(path)
    if path.is_file():
        raise MemR1Error(f"{name}: is a file; name the directory that holds config.json and the weights")
    if _HUB_ID.fullmatch(name):
        return name
    known = ", ".join(packaged.MODELS)
    close = difflib.get_close_matches(name, packaged.MODELS, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise MemR1Error(
        f"model {name!r} is neither a built-in model ({known}), nor an existing directory, nor a hub id of the form "
        f"org/name.{hint}"
    )


def weights_identity(name: str) -> str:
    """A text that changes when the weights behind a name do: of a directory also the sizes and times of its files."""
    path = Path(name).expanduser()
    if name in packaged.MODELS or not path.is_dir():
        return name
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    return "|".join([str(path.resolve()), *(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)])


def load_tokenizer(name: str, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of model `name`, with a pad token (the end token where it has none of its own).

    chat: also require a chat template, which every prompt of memr1 is rendered with.
    Raises MemR1Error when it is not there or has no chat template.
    """
    from transformers import AutoTokenizer

    where = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as e:
        raise _not_loaded("tokenizer", name, where, e) from e
    if chat and not tokenizer.chat_template:
        raise MemR1Error(
            f"model {name!r}: its tokenizer has no chat template, so memr1 cannot render prompts for it; choose an "
            f"instruction-tuned model, or put a chat_template.jinja into a local copy"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(
    name: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The language model `name`, in eval mode, with every weight from its files.

    dtype: `auto`, `float32`, `bfloat16`, `float16` or a torch.dtype; see `pick_dtype`.
    device: `auto`, `cpu`, `cuda`, `cuda:N` or a torch.device; see `pick_device`.
    attn_implementation: transformers' name of an attention kernel; None leaves the choice to transformers.
    Raises MemR1Error when the model is not there, is of no known architecture, or its files lack weights
    (transformers would fill those with random numbers and only warn).
    """
    from transformers import AutoModelForCausalLM

    where = resolve_model(name)
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    extra: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    extra.update(dtype=torch_dtype, output_loading_info=True)
    try:
        with quiet_loading():
            loaded: Any = AutoModelForCausalLM.from_pretrained(where, **extra)
    except (OSError, ValueError) as e:
        raise _not_loaded("model", name, where, e) from e
    model, info = loaded
    missing = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise MemR1Error(
            f"model {name!r} ({where}): its files lack weights that the architecture needs, or have them in another "
            f"shape: {shown}. Use a complete checkpoint of a causal language model"
        )
    return model.to(torch_device).eval()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars and deprecation notes, which a run would repeat for every role and stage."""
    import warnings

    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def context_window(model: nn.Module) -> int:
    """Longest sequence, prompt and completion together, in tokens, that `model` has positions for.

    Raises MemR1Error when its config does not say.
    """
    config = text_config(model)
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    raise MemR1Error(
        f"{type(config).__name__} names no context window (max_position_embeddings); set it in config.json"
    )


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is the current CUDA device where there is one, else the CPU. Raises MemR1Error for an absent device."""
    import torch

    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as e:
        raise MemR1Error(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from e
    if picked.type not in ("cpu", "cuda"):
        raise MemR1Error(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise MemR1Error(
            f"device {device!r} was asked for and torch sees {torch.cuda.device_count()} CUDA devices; use device=auto "
            f"or cpu, or install a CUDA build of torch"
        )
    return picked


def pick_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a CUDA device that computes in it, else float32 (on most CPUs bfloat16 is slower)."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        on_cuda = torch.device(device).type == "cuda"
        return torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if dtype not in _DTYPES:
        raise MemR1Error(f"dtype {dtype!r} is unknown; use auto, float32, bfloat16 or float16")
    return getattr(torch, _DTYPES[dtype])


def _not_loaded(what: str, name: str, where: str, error: Exception) -> MemR1Error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    built_in = ", ".join(packaged.MODELS)
    if Path(where).is_dir():
        return MemR1Error(f"{what} of {name!r} cannot be read from {where}: {reason}")
    offline = [v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(v, "").upper() in _TRUE]
    remedy = (
        f"{offline[0]} is set, so only models already in the hub cache can be used: unset it once to download, or copy "
        f"the model to a directory and name that"
        if offline
        else "check the id and the network (for a private model: `hf auth login`), or download it elsewhere, copy the "
        "directory here and name it; with HF_HUB_OFFLINE=1 no network is tried"
    )
    return MemR1Error(
        f"{what} {name!r} could not be loaded. Tried: built-in models ({built_in}), the directory {name}, the model "
        f"hub and its local cache ({reason}). Remedy: {remedy}"
    )


_TRUE = {"1", "ON", "YES", "TRUE"}
