"""memr1 trains language-model agents to manage and use long-term memory with reinforcement learning on Ray.

from memr1 import Memory
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memr1.client import AsyncMemory as AsyncMemory
    from memr1.client import Memory as Memory

__version__ = "0.1.0"
__all__ = ["AsyncMemory", "Memory"]


def __getattr__(name: str) -> Any:
    # imported when asked for: `import memr1` stays cheap
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from memr1 import client

    return getattr(client, name)
