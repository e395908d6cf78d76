"""Packing of sequences, scoring of completions, and the DeepSpeed learner group."""
