"""Bodies of the native API: what is taken and what is given, with examples for the OpenAPI page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from memr1.errors import MemR1Error
from memr1.memory import types
from memr1.memory.checks import check_time
from memr1.memory.oplog import LogRecord
from memr1.memory.types import Hit, MemoryEntry, OpResult
from memr1.serving.agents import Decided, Said
from memr1.serving.errors import STATUSES
from memr1.serving.quarantine import Held
from memr1.serving.refs import Applied, BankRef


def _moment(value: str) -> str:
    try:
        check_time(value, "time")
    except MemR1Error as error:
        raise ValueError(str(error)) from error
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a NUL cannot be kept")
    return value


Time = Annotated[str, AfterValidator(_moment), Field(max_length=64, examples=["2024-03-01T10:00:00+00:00"])]
Name = Annotated[str, AfterValidator(_no_nul), Field(min_length=1, max_length=100)]
Text = Annotated[str, Field(min_length=1)]
Metadata = dict[str, Any]
MAX_BATCH = 100


class Body(BaseModel):
    """A request body; unknown fields are refused, so that a typing error is no silent default."""

    model_config = ConfigDict(extra="forbid")


class Loose(BaseModel):
    """A body of other people's clients, which may hold more than is known here."""

    model_config = ConfigDict(extra="ignore")


class Message(Body):
    """One message of a conversation."""

    role: str = Field("user", max_length=32, examples=["user"])
    content: str = Field(examples=["Mara lives in Oslo now."])
    name: Name | None = Field(None, description="Who speaks; stands in front of the text.")
    trusted: bool = Field(True, description="False for what a user only passes on, such as a page or a mail.")

    @property
    def said(self) -> Said:
        """For the agents."""
        return Said(self.content, self.name, self.trusted)


class AddRequest(Body):
    """What to remember."""

    text: Text | None = Field(None, examples=["Mara lives in Oslo."])
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_BATCH)] | None = None
    infer: bool = Field(True, description="True: the manager decides. False: every text is added as it stands.")
    dry_run: bool = Field(False, description="Say what would be done, and do nothing.")
    wait: bool = Field(True, description="False: answer 202 with a job as soon as the request is on disk.")
    trusted: bool = Field(True, description="False: it is marked, and changes nothing that a trusted source said.")
    source: Name | None = Field(None, description="Where this comes from; `undo` takes it.", examples=["chat-17"])
    metadata: Metadata = Field({}, description="Kept with entries that are added as they stand.")
    time: Time | None = Field(None, description="When it is decided; default now.")
    event_time: Time | None = Field(None, description="When it happened; default `time`.")

    @model_validator(mode="after")
    def _something(self) -> AddRequest:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        if self.infer and self.metadata:
            raise ValueError("metadata is for entries that are added as they stand; set infer to false")
        return self

    @property
    def said(self) -> list[Said]:
        """What users said; the assistant's own words are no news."""
        if self.text is not None:
            return [Said(self.text)]
        return [m.said for m in self.messages or () if m.role == "user" and m.content.strip()]


class SearchRequest(Body):
    """What to look for."""

    query: Text = Field(examples=["Where does Mara live?"])
    k: int = Field(5, ge=1, le=1000)
    filters: dict[str, Any] | None = Field(None, examples=[{"speaker": "Mara"}])
    by: str = Field("vector", pattern="^(vector|words|hybrid)$")
    as_of: Time | None = None


class UpdateRequest(Body):
    """What changes; what is left out stays."""

    text: Text | None = Field(None, examples=["Mara lives in Bergen."])
    metadata: Metadata = Field({}, description="Keys that are named are set, the others stay.")
    event_time: Time | None = None

    @model_validator(mode="after")
    def _something(self) -> UpdateRequest:
        if self.text is None and not self.metadata:
            raise ValueError("give text or metadata")
        return self


class AnswerRequest(Body):
    """A question."""

    question: Text = Field(examples=["Where does Mara live?"])
    bank: Name | None = Field(None, description="Default: every bank of the scope.")
    user_id: Name | None = Field(None, examples=["mara"])
    agent_id: Name | None = None
    run_id: Name | None = None
    top_k: int | None = Field(None, ge=1, le=200, description="Entries retrieved; default as in training.")
    filters: dict[str, Any] | None = None
    as_of: Time | None = None


class Rules(Body):
    """Limits of a bank."""

    max_chars: int = Field(4096, ge=1, le=65536)
    max_entries: int | None = Field(None, ge=1, le=2**31)
    max_total_chars: int | None = Field(None, ge=1, le=2**53)


class BankRequest(Body):
    """A bank to make."""

    name: Name = Field(examples=["notes"])
    rules: Rules | None = None


class RollbackRequest(Body):
    """Where to go back to."""

    seq: int = Field(
        ge=0, le=2**53, examples=[1], description="Every entry gets back what it said after this decision."
    )


class UndoRequest(Body):
    """What to undo."""

    source: str = Field(min_length=1, max_length=256, examples=["chat-17"])


class EraseRequest(Body):
    """What to erase for good."""

    ids: Annotated[list[str], Field(min_length=1, max_length=MAX_BATCH, examples=[["m3"]])]


# ---------------------------------------------------------------------------------------------------------- responses


class Provenance(BaseModel):
    """Where the newest content came from."""

    turn_ids: list[str]
    speaker: str | None
    role: str | None
    model: str | None
    adapter: str | None
    weight_version: int | None
    trusted: bool = Field(description="False: from a source that is not to be relied on.")

    @classmethod
    def of(cls, provenance: types.Provenance) -> Provenance:
        """From the bank's own."""
        return cls(**{**vars(provenance), "turn_ids": list(provenance.turn_ids)})


class Memory(BaseModel):
    """An entry of a bank."""

    id: str = Field(examples=["m1"])
    text: str = Field(examples=["Mara lives in Oslo."])
    version: int
    status: str = Field(examples=["live"])
    created_at: str | None
    updated_at: str | None
    event_time: str | None
    metadata: Metadata
    provenance: Provenance

    @classmethod
    def of(cls, entry: MemoryEntry, **more: Any) -> Any:
        """From the bank's own."""
        return cls(
            id=entry.id,
            text=entry.text,
            version=entry.version,
            status=entry.status,
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            event_time=entry.event_time,
            metadata=entry.metadata,
            provenance=Provenance.of(entry.provenance),
            **more,
        )


class BankName(BaseModel):
    """A bank by whose it is and what it is called."""

    name: str
    user_id: str | None
    agent_id: str | None
    run_id: str | None

    @classmethod
    def of(cls, ref: BankRef) -> BankName:
        """From the service's own."""
        return cls(name=ref.name, user_id=ref.scope.user_id, agent_id=ref.scope.agent_id, run_id=ref.scope.run_id)


class Found(Memory):
    """An entry that fits a query."""

    score: float
    bank: BankName

    @classmethod
    def of_hit(cls, ref: BankRef, hit: Hit) -> Found:
        """From the service's own."""
        return cls.of(hit.entry, score=hit.score, bank=BankName.of(ref))


class Operation(BaseModel):
    """What became of one operation."""

    event: str = Field(examples=["ADD"])
    id: str | None
    text: str
    ok: bool
    changed: bool
    reason: str | None = Field(description="Why it was rejected, as a stable code.")
    detail: str | None

    @classmethod
    def of(cls, result: OpResult) -> Operation:
        """From the bank's own."""
        op = result.op
        return cls(
            event=op.event.value,
            id=result.entry_id or op.entry_id,
            text=op.text,
            ok=result.ok,
            changed=result.changed,
            reason=result.reason,
            detail=result.detail,
        )


class Decision(BaseModel):
    """What the manager, or the caller, decided at once: applied whole or not at all."""

    seq: int | None = Field(description="Its number in the log; null when nothing was decided.")
    facts: list[str] = Field(description="What it was about.")
    operations: list[Operation]
    error: str | None = Field(description="Why the manager's reply was refused as a whole.")
    replayed: bool = Field(description="True when it had been made before under its Idempotency-Key.")
    held: str | None = Field(description="Id in the quarantine, when an operator has to release it first.")
    suspicions: list[str] = Field(description="Why it is held, or in a dry run would be.")

    @classmethod
    def of(cls, decided: Decided) -> Decision:
        """From the service's own."""
        return cls._made(decided.facts, decided.applied, decided.error)

    @classmethod
    def of_applied(cls, applied: Applied) -> Decision:
        """Of a decision whose facts nobody tells again."""
        return cls._made((), applied, None)

    @classmethod
    def _made(cls, facts: Sequence[str], applied: Applied | None, error: str | None) -> Decision:
        return cls(
            seq=applied.seq if applied and applied.held is None else None,
            facts=list(facts),
            operations=[Operation.of(r) for r in applied.results] if applied else [],
            error=error,
            replayed=applied.replayed if applied else False,
            held=applied.held if applied else None,
            suspicions=list(applied.suspicions) if applied else [],
        )


class HeldWrite(BaseModel):
    """A decision that waits for an operator."""

    id: str
    bank: BankName
    suspicions: list[str] = Field(examples=[["standing_order"]])
    facts: list[str] = Field(description="What was said.")
    operations: list[Operation] = Field(description="What would be done.")
    time: str
    event_time: str | None
    provenance: Provenance

    @classmethod
    def of(cls, held: Held) -> HeldWrite:
        """From the service's own."""
        wanted = held.wanted
        return cls(
            id=held.id,
            bank=BankName.of(wanted.ref),
            suspicions=list(held.suspicions),
            facts=list(wanted.facts),
            operations=[Operation.of(OpResult(op, ok=False, reason="held")) for op in wanted.ops],
            time=wanted.time,
            event_time=wanted.event_time,
            provenance=Provenance.of(wanted.provenance),
        )


class HeldPage(BaseModel):
    """Some of them, oldest first."""

    held: list[HeldWrite]
    total: int
    offset: int


class AddResponse(BaseModel):
    """What was done."""

    bank: BankName
    decisions: list[Decision]
    dry_run: bool


class JobResponse(BaseModel):
    """Accepted work."""

    id: str
    state: str = Field(examples=["queued"], description="queued, running, done or failed")
    bank: BankName
    decisions: list[Decision] | None = Field(None, description="What was done, once it is done.")
    held: list[str] = Field(description="Ids in the quarantine of decisions that an operator has to release first.")
    error: dict[str, Any] | None = None


class Page(BaseModel):
    """Some of the entries, in order of ADD."""

    memories: list[Memory]
    total: int
    offset: int


class SearchResponse(BaseModel):
    """Best first."""

    results: list[Found]


class HistoryResponse(BaseModel):
    """Every version, oldest first."""

    versions: list[Memory]


class Record(BaseModel):
    """One decision of the log."""

    seq: int
    time: str | None
    event_time: str | None
    actor: str | None
    idempotency_key: str | None
    operations: list[Operation]
    reverts: list[tuple[str, int]] = Field(description="Of a roll back: entry, and the version it went back to.")
    erases: list[str]
    provenance: Provenance

    @classmethod
    def of(cls, record: LogRecord) -> Record:
        """From the bank's own."""
        return cls(
            seq=record.seq,
            time=record.time,
            event_time=record.event_time,
            actor=record.actor,
            idempotency_key=record.idempotency_key,
            operations=[Operation.of(r) for r in record.results],
            reverts=list(record.reverts),
            erases=list(record.erases),
            provenance=Provenance.of(record.provenance),
        )


class LogResponse(BaseModel):
    """Decisions in order."""

    records: list[Record]
    seq: int = Field(description="Number of the newest decision.")


class Reverted(BaseModel):
    """What a roll back or an undo changed."""

    changed: list[str]
    seq: int


class Erased(BaseModel):
    """What was erased."""

    entries: list[str]
    rewritten: list[int] = Field(description="Decisions of the log from which it was taken.")
    also_in: list[str] = Field(description="Where else one of the texts stands, which stays.")


class BankInfo(BankName):
    """A bank and its counts."""

    seq: int
    live: int
    deleted: int
    erased: int
    events: dict[str, int]
    rejected: dict[str, int]
    rules: Rules


class BankList(BaseModel):
    """Banks of a scope and of those within it."""

    banks: list[BankName]


class AnswerResponse(BaseModel):
    """An answer and what it rests on."""

    question: str
    answer: str | None = Field(examples=["Oslo"])
    error: str | None = Field(description="Why the model's reply holds no answer.")
    selected: list[Found] = Field(description="Memories that the answerer chose to use.")
    retrieved: list[Found] = Field(description="Memories that it was shown, best first.")
    model: str
    weight_version: int
    usage: dict[str, int]


class Me(BaseModel):
    """Who asks."""

    key_id: str
    name: str
    tenant: str | None
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    right: str
    model: str | None


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["not_found"], description="For programs; never changed.")
    message: str
    type: str
    param: str | None
    request_id: str
    details: Any = None


class ErrorResponse(BaseModel):
    """Body of every error."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in STATUSES}
"""For routers."""
