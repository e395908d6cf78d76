"""Advantages and losses as pure functions of tensors. Needs torch only: no Ray, no DeepSpeed, no transformers."""
