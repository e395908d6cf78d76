"""What kind of attention a model's layers use. Asked by the rollout engine and the scorer before they rely on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def text_config(model: nn.Module) -> Any:
    """The config of the language model, also where it is a part of a larger one."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def attention_kinds(model: nn.Module) -> frozenset[str]:
    """Which of `full_attention` and `sliding_attention` the layers use; empty where there are other layers as well.

    Empty means that a key-value cache and an attention mask do not describe the model: recurrent layers, convolutions,
    chunked or sparse attention.
    """
    if getattr(model, "_is_stateful", False):  # transformers' mark of recurrent and hybrid models
        return frozenset()
    config = text_config(model)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        layer_types = ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    kinds = frozenset(layer_types)
    return kinds if kinds <= {"full_attention", "sliding_attention"} else frozenset()
