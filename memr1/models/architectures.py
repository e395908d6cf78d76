"""How large a model is, without its weights and without a network: for plans and estimates.

A model at hand is described by its own `config.json`; of models that only their hub id names, the table below knows
the usual ones. The model is built on torch's meta device, where parameters have shapes and take no memory.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.models.adapters import LoraSettings
from memr1.models.registry import resolve_model

if TYPE_CHECKING:
    from torch import nn


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    } | more


def _qwen2(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    own = {"model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768}
    return _llama(hidden, inner, layers, heads, kv_heads, **(own | more))


_LARGE_QWEN2 = {"vocab_size": 152064, "tie_word_embeddings": False}

KNOWN: dict[str, dict[str, Any]] = {
    "smollm2-135m": _llama(576, 1536, 30, 9, 3),  # also where it has not been fetched
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _llama(960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(2048, 8192, 24, 32, 32),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 2),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 2),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 11008, 36, 16, 2),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 4, **_LARGE_QWEN2),
    "Qwen/Qwen2.5-14B-Instruct": _qwen2(5120, 13824, 48, 40, 8, **_LARGE_QWEN2),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(
        4096, 14336, 32, 32, 8, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False
    ),
}
"""What `config.json` of these models says about their shape."""


@dataclass(frozen=True)
class Architecture:
    """The size of a model."""

    name: str
    source: str
    """Where its shape was taken from."""
    parameters: int
    """Weights, tied ones counted once."""
    linear_parameters: int
    """Weights of the linear layers that every token passes; the head, which only scored tokens pass, is not in it."""
    adapter_parameters: int
    """Weights of one LoRA adapter over it."""
    layers: int
    hidden: int
    inner: int
    """Width of the feed-forward layers."""
    query_width: int
    """Numbers of the queries of one token in one layer."""
    kv_width: int
    """Numbers that the key-value cache keeps for one token in one layer."""
    vocabulary: int
    window: int
    """Longest sequence in tokens."""


def describe(name: str, lora: LoraSettings | None = None) -> Architecture:
    """The architecture of a model name, a directory, or a hub id that is in the table or in the hub's local cache.

    Raises MemR1Error when its shape is not known here, or when it lacks the modules that `lora` names.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, source = model_config(name)
    config = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Architecture(
        name=name,
        source=source,
        parameters=sum(p.numel() for p in model.parameters()),  # a tied weight is one parameter
        linear_parameters=sum(m.weight.numel() for m in _linear_layers(model).values()),
        adapter_parameters=_adapter_parameters(model, lora or LoraSettings(), name),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        query_width=heads * head_width,
        kv_width=2 * (getattr(config, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=config.vocab_size,
        window=config.max_position_embeddings,
    )


def model_config(name: str) -> tuple[Any, str]:
    """transformers' configuration of what `describe` knows, and where it was taken from; MemR1Error as there."""
    from transformers import AutoConfig

    if name in KNOWN:
        shape = dict(KNOWN[name])
        return AutoConfig.for_model(shape.pop("model_type"), **shape), "the table of known models"
    try:
        return AutoConfig.from_pretrained(resolve_model(name), local_files_only=True), "its config.json"
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean {near[0]}? Else put" if near else "put"
        raise MemR1Error(
            f"model.name: the shape of {name} is not known here; {hint} its config.json into a directory and name "
            "that, or download it once into the hub's cache"
        ) from error


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    from torch import nn

    head = model.get_output_embeddings()  # type: ignore[operator]
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def _adapter_parameters(model: nn.Module, lora: LoraSettings, name: str) -> int:
    """rank x (inputs + outputs) of every linear module that gets an adapter (LoRA, arXiv 2106.09685, section 4.1)."""
    linear = _linear_layers(model)
    wanted = lora.target_modules
    if wanted != "all-linear":
        names = (wanted,) if isinstance(wanted, str) else wanted
        linear = {n: m for n, m in linear.items() if n.rsplit(".", 1)[-1] in names}
    if not linear:
        raise MemR1Error(f"model.lora.target_modules: {wanted!r} names no linear module of {name}")
    return sum(lora.rank * (m.in_features + m.out_features) for m in linear.values())
