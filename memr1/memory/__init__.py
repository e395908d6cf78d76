"""The memory bank: entries, typed operations, the append-only log, search. Knows nothing of Ray or training."""
