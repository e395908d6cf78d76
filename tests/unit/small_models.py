"""Models of several architectures with seeded random weights and 61 tokens, small enough to differentiate in a test.

Their weights are drawn wider than usual, so that attention is far from uniform and a wrong mask shows in the output.
"""

from __future__ import annotations

from typing import Any

import torch

torch.set_num_threads(1)  # for products this small, handing work to other threads costs more than it saves

VOCAB = 61
WINDOW = 10
"""Sliding window of the models that have one: shorter than the sequences that tests use."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}

ATTENTION_MODELS = ("llama", "qwen2", "qwen3", "gemma2", "mistral")
"""Full attention (three), sliding and full layers with capped logits, sliding layers only."""


def build(architecture: str, seed: int = 0) -> Any:
    """A causal language model in eval mode. gpt2 has learned positions; mamba is recurrent."""
    import transformers as tf

    shape = dict(_SHAPE)
    configs: dict[str, Any] = {
        "llama": lambda: tf.LlamaConfig(**shape),
        "qwen2": lambda: tf.Qwen2Config(**{**shape, "tie_word_embeddings": True}),
        "qwen3": lambda: tf.Qwen3Config(**shape),
        "mistral": lambda: tf.MistralConfig(**shape, sliding_window=WINDOW),
        "gemma2": lambda: tf.Gemma2Config(
            **shape, sliding_window=WINDOW, final_logit_softcapping=3.0, query_pre_attn_scalar=8
        ),
        "granite": lambda: tf.GraniteConfig(**shape, logits_scaling=4.0),
        "gpt2": lambda: tf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        "mamba": lambda: tf.MambaConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(configs[architecture]())
    return model.eval()


def plain_logprobs(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...], temperature: float = 1.0) -> Any:
    """Log-probabilities of a completion by the model's ordinary forward on one row without padding, (n,)."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1)
