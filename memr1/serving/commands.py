"""`memr1 keys`, and what `memr1 serve` does."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from memr1.errors import MemR1Error

if TYPE_CHECKING:
    from memr1.serving.settings import ServingConfig

app = typer.Typer(help="Make, list and revoke API keys of a service.", no_args_is_help=True)

File = Annotated[str, typer.Option("--file", envvar="MEMR1_KEYS", help="The key file.")]
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as the name of a program.")],
    file: File = "keys.json",
    tenant: Annotated[str, typer.Option(help="Customer; tenants share nothing.")] = "default",
    right: Annotated[str, typer.Option(help="read, write or admin; each includes those before it.")] = "write",
    user: Annotated[str | None, typer.Option(help="Only this user's memory.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent's memory.")] = None,
    run: Annotated[str | None, typer.Option(help="Only this run's memory.")] = None,
    per_minute: Annotated[int, typer.Option(help="Requests a minute; 0 is no limit.")] = 0,
    expires: Annotated[str | None, typer.Option(help="ISO 8601 day or time from which it is refused.")] = None,
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="What it writes is marked, and changes nothing that others said.")
    ] = False,
) -> None:
    """Make a key and print it. It is shown this once: only its digest is kept."""
    from memr1.serving.keys import KeyFile

    key, record = KeyFile(file, create=True).create(
        name,
        tenant=tenant,
        right=right,
        user_id=user,
        agent_id=agent,
        run_id=run,
        requests_per_minute=per_minute,
        expires=expires,
        trusted=not untrusted,
    )
    print(key)
    print(f"{file}: key {record.id} ({name}); keep it, it is not shown again", file=sys.stderr)


@app.command("list")
def list_keys(file: File = "keys.json") -> None:
    """List keys: what they are for and what they may; never the keys themselves."""
    from rich.console import Console
    from rich.table import Table

    from memr1.serving.keys import KeyFile

    columns = ("id", "name", "tenant", "right", "user_id", "agent_id", "run_id", "requests_per_minute", "created")
    table = Table(*columns, "expires", "revoked", "trusted")
    for record in KeyFile(file).records():
        values = (getattr(record, c) for c in (*columns, "expires", "revoked", "trusted"))
        table.add_row(*("" if value is None else str(value) for value in values))
    Console(markup=False, emoji=False, highlight=False).print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `memr1 keys list` shows.")],
    file: File = "keys.json",
) -> None:
    """Refuse a key from now on; running services notice within a second."""
    from memr1.serving.keys import KeyFile

    print(f"{file}: key {KeyFile(file).revoke(key_id).id} is revoked")


def check_host(host: str, keys: str | None) -> None:
    """`MemR1Error` for a host that others can reach without keys to keep them out."""
    if keys is None and host not in LOOPBACK:
        raise MemR1Error(
            f"--host {host}: without API keys everybody who reaches this machine could read and change every memory; "
            "make a key with `memr1 keys create NAME --right admin` and name its file with --keys, or serve on "
            "127.0.0.1"
        )


def serve(
    source: str | None,
    host: str,
    port: int,
    db: str,
    keys: str | None,
    runs: str | None,
    without_model: bool,
    on_ray: bool,
    overrides: Sequence[str],
) -> None:
    """`memr1 serve`: until a signal; requests under way are finished first."""
    from omegaconf import OmegaConf

    from memr1.serving.settings import ServingConfig
    from memr1.serving.source import default_source, find_source

    check_host(host, keys)
    found = None if without_model else default_source() if source is None else find_source(source)
    if found is not None and found.warning:
        print(f"memr1: warning: {found.warning}", file=sys.stderr)
    values = {"source": found.path if found else None, "db": db, "keys": keys, "runs": runs}
    extra = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(extra, dict)
    settings = ServingConfig.from_mapping({**values, **{str(k): v for k, v in extra.items()}}, "memr1 serve")
    if on_ray:
        from memr1.serving.on_ray import run

        run(settings, host, port)
    else:
        run_uvicorn(settings, host, port)


def leave_on_sigterm() -> None:
    """Let SIGTERM end the program in order: uvicorn finishes requests first and then raises the signal again."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def run_uvicorn(settings: ServingConfig, host: str, port: int) -> None:
    """Serve settings with plain uvicorn, the model in a process of its own."""
    from memr1.serving.app import start
    from memr1.serving.observe import log_to_stderr
    from memr1.serving.server import Server

    log_to_stderr()
    services = start(settings, own_process=True)
    leave_on_sigterm()
    try:
        print(
            f"memr1 serves {services.label} at http://{host}:{port}, console in /console, API in /openapi.json",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            Server(services, host, port).run()
    finally:
        services.close()
