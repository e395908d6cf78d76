"""`memr1 bank`: banks of a store from the command line, as tables for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memr1.errors import MemR1Error

if TYPE_CHECKING:
    from memr1.memory.bank import MemoryBank
    from memr1.memory.erasure import Erasure
    from memr1.memory.scopes import Scope
    from memr1.memory.store import BankStore
    from memr1.memory.types import OpResult

app = typer.Typer(help="Create, fill, search, check and move memory banks.", no_args_is_help=True)

Store = Annotated[
    str,
    typer.Option(
        "--store", envvar="MEMR1_STORE", help="SQLite file, or URL such as postgresql+psycopg://user@host/database."
    ),
]
EmbedderName = Annotated[
    str, typer.Option("--embedder", envvar="MEMR1_EMBEDDER", help="minilm, hash, a folder or a hub id.")
]
Name = Annotated[str, typer.Argument(metavar="BANK", help="Name of the bank.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of a table.")]
Turn = Annotated[str | None, typer.Option("--turn", help="Id of the turn or document that this comes from.")]

Day = Annotated[str | None, typer.Option("--as-of", help="ISO 8601 time: what the bank held then.")]

_STORE, _EMBEDDER = "memory.db", "minilm"
_scope: ContextVar[Scope | None] = ContextVar("scope", default=None)
"""The scope that was named before the command."""


@app.callback()
def scope(
    user: Annotated[str | None, typer.Option("--user", help="Only this user's banks.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's banks.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this run's banks.")] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only this tenant's banks; those of a service without keys: local.")
    ] = None,
) -> None:
    """Create, fill, search, check and move memory banks."""
    from memr1.memory.scopes import Scope

    _scope.set(None if {user, agent, run, tenant} == {None} else Scope(user, agent, run, tenant))


def _id(bank: str) -> str:
    """Id in the store of a bank that was named, in the scope of this command."""
    scope = _scope.get()
    return bank if scope is None else scope.bank_id(bank)


@contextmanager
def _opened(store: str, embedder: str = "hash", *, create: bool = False) -> Iterator[BankStore]:
    # only searching and rebuilding need vectors; `hash` loads no model
    from memr1.memory.embed import load_embedder
    from memr1.memory.store import BankStore

    with BankStore.open(store, load_embedder(embedder), owner="memr1 bank", create=create) as opened:
        yield opened


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def _show(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    """Rows as JSON lines, or the given columns of them as a table."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if row.get(c) is None else str(row[c]) for c in columns))
    # what is remembered may hold brackets and colons: it is shown, not obeyed
    Console(markup=False, emoji=False, highlight=False).print(table)


def _entry(entry: Any, **more: Any) -> dict[str, Any]:
    return {**more, **dataclasses.asdict(entry)}


def _find(bank: MemoryBank, entry_id: str) -> list[Any]:
    versions = bank.history(entry_id)
    if not versions:
        raise MemR1Error(f"bank {bank.bank_id!r} never gave out the id {entry_id!r}")
    return versions


@app.command("list")
def list_banks(store: Store = _STORE, as_json: AsJson = False) -> None:
    """List the banks of a store, or of a scope and those within it."""
    from memr1.memory.scopes import Scope

    scope = _scope.get() or Scope()
    rows = []
    with _opened(store) as opened:
        for name in opened.names():
            whose, own = Scope.of(name) or (Scope(), name)
            if scope.covers(whose):
                tenant = {} if whose.tenant is None else {"tenant": whose.tenant}
                owner = {"user": whose.user_id, "agent": whose.agent_id, "run": whose.run_id}
                rows.append({**tenant, **owner, "bank": own})
    owned = [c for c in ("tenant", "user", "agent", "run") if any(row.get(c) for row in rows)]
    _show(rows, as_json, (*owned, "bank"))


@app.command()
def create(bank: Name, store: Store = _STORE) -> None:
    """Make an empty bank, and the store where there is none."""
    with _opened(store, create=True) as opened:
        opened.create(_id(bank))
        print(f"{opened.where}: bank {bank!r} is there")


@app.command()
def add(
    bank: Name,
    texts: Annotated[list[str], typer.Argument(help="What to remember; each text becomes an entry.")],
    turn: Turn = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: adding again under the same key does nothing.")
    ] = None,
    store: Store = _STORE,
    as_json: AsJson = False,
) -> None:
    """Add entries, all or none. Exit code 1 when the bank rejects one."""
    from memr1.memory.types import Event, MemoryOp, Provenance

    with _opened(store) as opened:
        results = opened.bank(_id(bank)).apply(
            [MemoryOp(Event.ADD, text) for text in texts],
            provenance=Provenance(turn_ids=(turn,) if turn else (), role="user"),
            time=_now(),
            idempotency_key=key,
        )
    rows = [{"ok": r.ok, "id": r.entry_id, "text": r.op.text, "reason": r.reason, "detail": r.detail} for r in results]
    _show(rows, as_json, ("ok", "id", "text", "reason", "detail"))
    if not all(r.ok for r in results):
        raise typer.Exit(1)


@app.command()
def search(
    bank: Name,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="Most results.")] = 5,
    filters: Annotated[
        str | None, typer.Option("--filter", help="""JSON, for example '{"speaker": "Ann"}' (docs/memory.md).""")
    ] = None,
    by: Annotated[str, typer.Option("--by", help="vector, words (BM25) or hybrid.")] = "vector",
    as_of: Day = None,
    store: Store = _STORE,
    embedder: EmbedderName = _EMBEDDER,
    as_json: AsJson = False,
) -> None:
    """Search what is live, or was at a time."""
    try:
        wanted = json.loads(filters) if filters is not None else None
    except ValueError as error:
        raise MemR1Error(f'--filter: not JSON ({error}); write \'{{"speaker": "Ann"}}\'') from error
    with _opened(store, embedder) as opened:
        hits = opened.bank(_id(bank)).search(query, k, filters=wanted, by=by, as_of=as_of)
    rows = [_entry(h.entry, score=round(h.score, 4)) for h in hits]
    _show(rows, as_json, ("score", "id", "text", "event_time"))


@app.command()
def history(
    bank: Name,
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="Id of an entry, such as m3.")],
    store: Store = _STORE,
    as_json: AsJson = False,
) -> None:
    """Every version of an entry, oldest first."""
    with _opened(store) as opened:
        rows = [_entry(e) for e in _find(opened.bank(_id(bank)), entry_id)]
    _show(rows, as_json, ("version", "status", "text", "updated_at"))


@app.command()
def log(
    bank: Name,
    last: Annotated[int, typer.Option("--last", help="Only the newest decisions; 0 for all.")] = 20,
    store: Store = _STORE,
    as_json: AsJson = False,
) -> None:
    """The decisions, one row for each operation."""
    with _opened(store) as opened:
        records = list(opened.bank(_id(bank)).log)[-last if last > 0 else 0 :]
    if as_json:
        _show([r.to_json() for r in records], True, ())
        return
    rows: list[dict[str, Any]] = []
    for r in records:
        said = {"seq": r.seq, "time": r.time, "actor": r.actor}
        rows += [
            {**said, "event": o.op.event, "id": o.entry_id or o.op.entry_id, "text": o.op.text, "rejected": o.reason}
            for o in r.results
        ]
        rows += [{**said, "event": "ERASE", "id": i} for i in r.erases]
        rows += [
            {**said, "event": "REVERT", "id": i, "text": f"to version {v}" if v else "deleted"} for i, v in r.reverts
        ]
    _show(rows, False, ("seq", "time", "actor", "event", "id", "text", "rejected"))


@app.command()
def verify(bank: Name, store: Store = _STORE) -> None:
    """Replay the log and compare it with the stored entries; an error names the first that differs."""
    with _opened(store) as opened:
        opened.verify(_id(bank))
    print(f"{bank}: log and entries agree")


@app.command()
def rebuild(bank: Name, store: Store = _STORE, embedder: EmbedderName = _EMBEDDER) -> None:
    """Make entries, vectors and index again from the log."""
    with _opened(store, embedder) as opened:
        opened.repair(_id(bank))
        opened.verify(_id(bank))
    print(f"{bank}: entries, vectors and index were made again from the log")


def _tell_changed(bank: str, changed: Sequence[str]) -> None:
    print(f"{bank}: {len(changed)} entries changed{': ' if changed else ''}{', '.join(changed)}")


@app.command()
def rollback(
    bank: Name,
    seq: Annotated[int, typer.Argument(help="Number of a decision, see `log`; 0 is the empty bank.")],
    store: Store = _STORE,
) -> None:
    """Give every entry the content it had after a decision. The log keeps what came later."""
    with _opened(store) as opened:
        changed = opened.bank(_id(bank)).rollback(seq, time=_now(), actor="user")
    _tell_changed(bank, changed)


@app.command()
def undo(
    bank: Name,
    turn: Annotated[str, typer.Argument(help="Id of the turn or document whose effects are to go.")],
    store: Store = _STORE,
) -> None:
    """Undo what came from one source, where nothing has changed it since."""
    with _opened(store) as opened:
        changed = opened.bank(_id(bank)).undo(turn, time=_now(), actor="user")
    _tell_changed(bank, changed)


@app.command()
def erase(
    bank: Name,
    entry_ids: Annotated[list[str], typer.Argument(metavar="ENTRY...", help="Ids of entries, such as m3.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = _STORE,
) -> None:
    """Take the content of entries out of everything, log and earlier versions included, for good."""
    with _opened(store) as opened:
        if not yes:
            typer.confirm(f"Erase {', '.join(entry_ids)} of {bank!r} for good?", abort=True)
        _tell_erased(bank, opened.bank(_id(bank)).erase(entry_ids, time=_now(), actor="user"))


@app.command()
def purge(
    bank: Name,
    deleted_before: Annotated[str, typer.Argument(help="ISO 8601 time, such as 2024-05-01.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = _STORE,
) -> None:
    """Erase the entries that were deleted before a time."""
    with _opened(store) as opened:
        if not yes:
            typer.confirm(f"Erase what was deleted in {bank!r} before {deleted_before} for good?", abort=True)
        _tell_erased(bank, opened.bank(_id(bank)).purge(deleted_before, time=_now(), actor="user"))


def _tell_erased(bank: str, erasure: Erasure) -> None:
    print(f"{bank}: {len(erasure.entries)} entries erased, from {len(erasure.rewritten)} decisions")
    for place in erasure.also_in:
        print(f"also said in {place} of this bank, which stays")


@app.command("export")
def export_bank(
    bank: Name, path: Annotated[Path, typer.Argument(help="JSON-lines file to write.")], store: Store = _STORE
) -> None:
    """Write a bank with its whole history as JSON lines."""
    with _opened(store) as opened:
        opened.bank(_id(bank)).dump(path)
    print(f"{path}: written")


@app.command("import")
def import_bank(
    path: Annotated[Path, typer.Argument(help="File to read.")],
    bank: Annotated[str | None, typer.Option("--as", help="Name of the new bank; default the exported one's.")] = None,
    source: Annotated[
        str, typer.Option("--from", help="memr1 (what `export` wrote), mem0 (its memories as JSON), or locomo (facts).")
    ] = "memr1",
    store: Store = _STORE,
) -> None:
    """Make banks of a file: an exported bank with its history, mem0's memories, or the facts of LoCoMo's dialogues."""
    from memr1.memory.bank import MemoryBank
    from memr1.memory.imports import bring_in, read_mem0

    with _opened(store, create=True) as opened:
        if source == "memr1":
            made = [MemoryBank.load(path, opened.embedder)]
        elif source == "mem0":
            made = [MemoryBank(bank or path.stem, opened.embedder)]
            _tell(bring_in(made[0], read_mem0(path)))
        elif source == "locomo":
            made = _locomo(path, opened.embedder)
        else:
            raise MemR1Error(f"--from: {source!r} is not known; use memr1, mem0 or locomo")
        if bank is not None and len(made) != 1:
            raise MemR1Error(f"--as: {path} holds {len(made)} banks; leave the name out, each has its own")
        taken = {_id(bank or new.bank_id) for new in made} & set(opened.names())
        if taken:
            raise MemR1Error(f"{opened.where}: there is a bank {min(taken)!r} already; nothing was imported")
        for new in made:
            kept = opened.adopt(new, _id(bank or new.bank_id))
            print(f"{opened.where}: bank {kept.bank_id!r} has {len(kept)} entries from {kept.seq} decisions")


def _locomo(path: Path, embedder: Any) -> list[MemoryBank]:
    """A bank for each conversation: the dataset's observations, added as they are told."""
    from memr1.data.locomo import read_locomo
    from memr1.memory.bank import MemoryBank
    from memr1.memory.types import Event, MemoryOp, Provenance

    made = []
    for dialogue in read_locomo(path):
        made.append(MemoryBank(dialogue.id, embedder))
        for session, turn in dialogue.turns():
            for fact in turn.facts or ():
                time = session.time.isoformat() if session.time else None
                told = Provenance(turn_ids=(turn.id,), speaker=turn.speaker, role="import")
                _tell(made[-1].apply([MemoryOp(Event.ADD, fact.text)], provenance=told, time=time))
    return made


def _tell(results: Sequence[OpResult]) -> None:
    for result in results:
        if not result.ok:
            print(f"rejected as {result.reason}: {result.op.text!r}", file=sys.stderr)


@app.command()
def drop(
    bank: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = _STORE,
) -> None:
    """Remove a bank with its log, for good. `export` it first to keep it."""
    with _opened(store) as opened:
        held = len(opened.bank(_id(bank)))
        if not yes:
            typer.confirm(f"Remove {bank!r} with {held} entries and its whole log for good?", abort=True)
        opened.drop(_id(bank))
        print(f"{opened.where}: bank {bank!r} is gone")


@app.command()
def stats(bank: Name, store: Store = _STORE, as_json: AsJson = False) -> None:
    """Counts of decisions, operations, rejections and entries."""
    with _opened(store) as opened:
        counts = dataclasses.asdict(opened.bank(_id(bank)).stats())
    if as_json:
        print(json.dumps(counts))
        return
    flat = {k: v for k, v in counts.items() if not isinstance(v, dict)}
    for name in ("events", "rejected"):
        flat |= {f"{name}: {k}": v for k, v in counts[name].items()}
    _show([{"what": k, "count": v} for k, v in flat.items()], False, ("what", "count"))
