"""Episodes: what each role sees, in which order, and what comes of it. Re-runnable from a snapshot."""
