"""What the OpenAPI page shows of replies whose shapes are mem0's and OpenAI's; those of the native routes are models.
Each is what a route takes as `responses`. Fields that are null are left out, as FastAPI takes them out of the page."""

from __future__ import annotations

from typing import Any

from memr1.memory.scopes import Scope
from memr1.serving.refs import BankRef


def _reply(reply: Any, **other_types: Any) -> dict[int | str, dict[str, Any]]:
    """other_types: schemas of other content types that the route has."""
    return {200: {"content": {"application/json": {"example": reply}, **other_types}}}


_ID = BankRef(Scope(user_id="mara")).memory_id("m1")
_TIME = "2024-03-01T10:00:00.000+00:00"

_MEMORY = {
    "id": _ID,
    "memory": "Mara lives in Oslo.",
    "user_id": "mara",
    "created_at": _TIME,
    "updated_at": _TIME,
}
MEM0_MEMORY = _reply(_MEMORY)
MEM0_ADDED = _reply({"results": [{"id": _ID, "memory": "Mara lives in Oslo.", "event": "ADD"}]})
MEM0_FOUND = _reply({"results": [{**_MEMORY, "score": 0.83}]})
MEM0_LIST = _reply({"results": [_MEMORY]})
MEM0_PAGE = _reply({"count": 1, "results": [_MEMORY]})
MEM0_HISTORY = _reply(
    [
        {
            "id": f"{_ID}@1",
            "memory_id": _ID,
            "new_memory": "Mara lives in Oslo.",
            "event": "ADD",
            "created_at": _TIME,
            "updated_at": _TIME,
            "is_deleted": False,
        }
    ]
)
MEM0_UPDATED = _reply({**_MEMORY, "message": "Memory updated successfully"})
MEM0_DELETED = _reply({"message": "Memory deleted successfully!"})
MEM0_ALL_DELETED = _reply({"message": "Memories deleted successfully!", "deleted": 1})
MEM0_PING = _reply({"status": "ok", "org_id": "acme", "project_id": "acme"})
MEM0_ENTITIES = _reply(
    {
        "count": 1,
        "results": [{"id": "mara", "name": "mara", "type": "user"}],
    }
)

_MODEL = {"id": "memr1", "object": "model", "created": 0, "owned_by": "memr1"}
OPENAI_MODEL = _reply(_MODEL)
OPENAI_MODELS = _reply({"object": "list", "data": [_MODEL, {**_MODEL, "id": "minilm"}]})
OPENAI_EMBEDDINGS = _reply(
    {
        "object": "list",
        "model": "minilm",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.014, -0.051, 0.032]}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
)
_FOUND = {
    "id": "m1",
    "text": "Mara lives in Oslo.",
    "version": 1,
    "status": "live",
    "created_at": _TIME,
    "updated_at": _TIME,
    "event_time": _TIME,
    "metadata": {},
    "provenance": {
        "turn_ids": ["key:3f0c9a2b71de", "request:5b1f4e0c9d7a4c06"],
        "role": "manager",
        "model": "train_local/step_000190",
        "adapter": "manager",
        "weight_version": 190,
        "trusted": True,
    },
    "score": 0.83,
    "bank": {"name": "memories", "user_id": "mara"},
}
OPENAI_CHAT = _reply(
    {
        "id": "chatcmpl-5b1f4e0c9d7a4c06",
        "object": "chat.completion",
        "created": 1709287200,
        "model": "memr1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Oslo"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 161, "completion_tokens": 9, "total_tokens": 170},
        "memory": {
            "bank": {"name": "memories", "user_id": "mara"},
            "retrieved": [_FOUND],
            "selected": [_FOUND],
            "operations": [],
            "held": [],
        },
    },
    **{"text/event-stream": {"schema": {"type": "string"}}},
)
