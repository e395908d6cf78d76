"""Turns a GGUF file into an ordinary transformers directory. Called once per model by `memr1.models.packaged`.

Weights are written as float32, which holds de-quantized values exactly (an 8-bit integer times a 16-bit scale needs
more digits than bfloat16 or float16 have): see docs/models.md for what rounding would change.
"""

from __future__ import annotations

from pathlib import Path

from memr1.errors import MemR1Error


def gguf_to_transformers(gguf: Path, out: Path, *, single_digit_tokens: bool) -> None:
    """Write config, float32 safetensors and tokenizer of the model in `gguf` to the directory `out`.

    single_digit_tokens: the tokenizer splits numbers into digits before anything else. transformers does not read
    that from a GGUF file, and without it a space or line break next to a digit is cut differently from training.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # three bars of a second each, unreadable in a log file
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A loaded model cannot be saved while its config has the quantization entry: move the weights to a plain one.
    config_dict = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config_dict.pop(key, None)
    config = type(loaded.config).from_dict(config_dict)
    config.dtype = torch.float32
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if single_digit_tokens:
        _split_digits(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    if not tokenizer.chat_template:
        raise MemR1Error(f"{gguf}: has no chat template; memr1 needs an instruction-tuned model")
    tokenizer.save_pretrained(out)


def _split_digits(tokenizer) -> None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
