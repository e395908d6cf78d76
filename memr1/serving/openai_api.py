"""OpenAI's routes: a chat that answers from memory, embeddings, models. For programs that use the `openai` package.

The last user message is the question. Whose memory: `user`, or `memory` in the body (`extra_body` of the package):
`{"memory": {"user_id": "mara", "bank": "notes", "write": true}}`. The reply carries `memory` with what was retrieved,
what was selected, and, where something was written, the operations.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time as clock
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from memr1.errors import MemR1Error
from memr1.memory.scopes import Scope
from memr1.serving import examples as ex
from memr1.serving.adding import add
from memr1.serving.agents import Answered, Said
from memr1.serving.errors import ApiError, as_api_error, body_of
from memr1.serving.keys import WRITE
from memr1.serving.native_api import banks_of
from memr1.serving.refs import BankRef
from memr1.serving.requests import Caller, Reader, now
from memr1.serving.schemas import ERRORS, BankName, Body, Found, Loose, Name, Operation, Text

router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)

MODEL = "memr1"
"""Name of the answerer with its memory."""


class Part(Loose):
    """A part of a message."""

    type: str
    text: str = ""


class ChatMessage(Loose):
    """A message."""

    role: str = Field(examples=["user"])
    content: str | list[Part] | None = Field(None, examples=["Where does Mara live?"])

    @property
    def text(self) -> str:
        """Its words; 422 for a part that is none."""
        if isinstance(self.content, list):
            if any(p.type != "text" for p in self.content):
                raise ApiError(422, "invalid_field", "messages: only text is understood", param="messages")
            return "".join(p.text for p in self.content)
        return self.content or ""


class StreamOptions(Loose):
    """What a stream tells."""

    include_usage: bool = False


class MemoryOptions(Body):
    """Whose memory, and whether the message is to be remembered."""

    user_id: Name | None = None
    agent_id: Name | None = None
    run_id: Name | None = None
    bank: Name | None = None
    top_k: int | None = Field(None, ge=1, le=200)
    write: bool = Field(False, description="Let the manager decide about the message, after it was answered.")
    trusted: bool = Field(True, description="False: what is written is marked, and changes nothing that others said.")


class ChatRequest(Loose):
    """A chat."""

    model: str = Field(MODEL, examples=[MODEL])
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] = Field(
        examples=[[{"role": "user", "content": "Where does Mara live?"}]]
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Name | None = Field(None, description="Whose memory.", examples=["mara"])
    n: int | None = Field(None, ge=1, le=1, description="One choice; answers are greedy, and two would be equal.")
    memory: MemoryOptions = Field(default_factory=lambda: MemoryOptions.model_validate({}))


class EmbeddingRequest(Loose):
    """Texts to embed."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)] = Field(examples=["Mara lives in Oslo."])
    model: str = Field(examples=["minilm"])
    encoding_format: str | None = Field("float", pattern="^(float|base64)$")


@router.get("/models", summary="Models that can be asked", responses=ex.OPENAI_MODELS)
async def models(caller: Reader) -> dict[str, Any]:
    """The answerer, and the embedder."""
    embedder, _ = await caller.services.banks.call("embed", [])
    names = [*([MODEL] if caller.services.agents else []), embedder]
    return {"object": "list", "data": [_model(name) for name in names]}


@router.get("/models/{model}", summary="One model", responses=ex.OPENAI_MODEL)
async def model(model: str, caller: Reader) -> dict[str, Any]:
    """Whether it is there."""
    await _check_model(caller, model, (await models(caller))["data"])
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "memr1"}


async def _check_model(caller: Caller, name: str, known: list[dict[str, Any]]) -> None:
    if name not in [m["id"] for m in known]:
        there = ", ".join(m["id"] for m in known)
        raise ApiError(404, "model_not_found", f"there is no model {name!r}; there are {there}", param="model")


@router.post("/embeddings", summary="Embed texts", responses=ex.OPENAI_EMBEDDINGS)
async def embeddings(body: EmbeddingRequest, caller: Reader) -> dict[str, Any]:
    """With the embedder of the banks. Nothing is kept."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    name, vectors = await caller.services.banks.call("embed", texts)
    await _check_model(caller, body.model, [_model(name)])
    data = [
        {"object": "embedding", "index": i, "embedding": _packed(v) if body.encoding_format == "base64" else v}
        for i, v in enumerate(vectors)
    ]
    words = sum(len(t.split()) for t in texts)  # the embedder's own tokens are not told
    return {"object": "list", "model": name, "data": data, "usage": {"prompt_tokens": words, "total_tokens": words}}


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


@router.post(
    "/chat/completions",
    summary="Chat with memory",
    responses=ex.OPENAI_CHAT,
)
async def chat(body: ChatRequest, caller: Reader) -> Any:
    """Answers the last user message from memory; `stream: true` sends it as it is written."""
    agents = caller.services.agent()
    await _check_model(caller, body.model, [_model(MODEL)])
    question = next((m.text for m in reversed(body.messages) if m.role == "user"), "").strip()
    if not question:
        raise ApiError(422, "invalid_field", "messages: a user message with words in it is needed", param="messages")
    options = body.memory
    if options.write and not caller.principal.may(WRITE):
        raise ApiError(403, "forbidden", "memory.write: this key may only read", param="memory.write")
    scope = caller.within(options.user_id or body.user, options.agent_id, options.run_id)
    ref = BankRef(scope, options.bank) if options.bank else BankRef(scope)
    refs = await _known(caller, scope, options.bank)
    turn = _Turn(body, caller, ref, question)
    if body.stream:
        parts = agents.answer_in_parts(caller.scope, refs, question, top_k=options.top_k)
        return StreamingResponse(turn.events(parts), media_type="text/event-stream")
    answered = await agents.answer(caller.scope, refs, question, top_k=options.top_k)
    return {
        **turn.head("chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _words(answered), "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": _usage(answered),
        "memory": await turn.memory(answered),
    }


async def _known(caller: Caller, scope: Scope, name: str | None) -> list[BankRef]:
    """Banks to answer from; none where nothing is known of somebody yet."""
    try:
        return await banks_of(caller, scope, name)
    except ApiError as error:
        if error.status == 404:
            return []
        raise


def _words(answered: Answered) -> str:
    """The answer; where the model's reply holds none, the reply as it is."""
    return answered.text if answered.text is not None else answered.completion


def _usage(answered: Answered) -> dict[str, int]:
    return {
        "prompt_tokens": answered.prompt_tokens,
        "completion_tokens": answered.completion_tokens,
        "total_tokens": answered.prompt_tokens + answered.completion_tokens,
    }


class _Turn:
    """One reply in the making."""

    def __init__(self, body: ChatRequest, caller: Caller, ref: BankRef, question: str) -> None:
        self._body, self._caller, self._ref, self._question = body, caller, ref, question
        self._made = int(clock.time())

    def head(self, kind: str) -> dict[str, Any]:
        """What every object of a reply begins with."""
        return {"id": f"chatcmpl-{self._caller.request_id}", "object": kind, "created": self._made, "model": MODEL}

    async def memory(self, answered: Answered) -> dict[str, Any]:
        """What the answer rests on, and what was written."""
        shown: dict[str, Any] = {
            "bank": BankName.of(self._ref).model_dump(),
            "retrieved": [Found.of_hit(r, h).model_dump() for r, h in answered.retrieved[: answered.shown]],
            "selected": [Found.of_hit(r, h).model_dump() for r, h in answered.selected],
            "operations": [],
            "held": [],
            "error": answered.error,
        }
        if self._body.memory.write:
            caller = self._caller
            try:
                decided = await add(
                    caller.services,
                    caller.scope,
                    self._ref,
                    [Said(self._question)],
                    infer=True,
                    provenance=caller.provenance(
                        None, self._body.model_dump(mode="json"), trusted=self._body.memory.trusted
                    ),
                    time=now(),
                    key=caller.idempotency_key,
                )
            except MemR1Error as error:  # the answer is there already, and what went wrong belongs beside it
                shown["write_error"] = as_api_error(error).code
            else:
                applied = [d.applied for d in decided if d.applied is not None]
                shown["operations"] = [Operation.of(r).model_dump() for a in applied for r in a.results]
                shown["held"] = [a.held for a in applied if a.held is not None]
        return shown

    async def events(self, parts: AsyncIterator[str | Answered]) -> AsyncIterator[str]:
        """Server-sent events: the role, parts of the answer, the end with `memory`, the usage if wanted."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            told = False
            async for part in parts:
                if isinstance(part, str):
                    told = True
                    yield self._chunk({"content": part})
                    continue
                if not told:
                    yield self._chunk({"content": _words(part)})
                yield self._chunk({}, "stop", memory=await self.memory(part))
                if self._body.stream_options is not None and self._body.stream_options.include_usage:
                    yield _event({**self.head("chat.completion.chunk"), "choices": [], "usage": _usage(part)})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the status is out; the package reads an error from the stream
            known = as_api_error(error) if isinstance(error, MemR1Error) else None
            refusal = known or ApiError(500, "internal_error", "the service failed; see its log")
            yield _event(body_of(refusal, "/v1/chat", self._caller.request_id))

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _event({**self.head("chat.completion.chunk"), "choices": [choice], **more})


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
