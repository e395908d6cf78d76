"""Rewards: exact match, F1 and BLEU-1 as pure functions of (answer, gold), and their composition."""
