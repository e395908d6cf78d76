"""The training loop, its tasks, checkpoints and self-checks, and what a run leaves behind: logs, report, viewer."""
