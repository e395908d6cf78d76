"""Dialogues, questions and where they come from: FactWorld, LoCoMo, JSONL."""
