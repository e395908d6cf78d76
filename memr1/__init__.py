"""memr1 trains language-model agents to manage and use long-term memory with reinforcement learning on Ray."""

__version__ = "0.1.0"
