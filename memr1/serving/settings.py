"""What a service is started with: fields of `memr1 serve` and of `args` in configs/serve.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.config_file import build_section
from memr1.errors import MemR1Error


@dataclass(frozen=True)
class ServingConfig:
    """A service."""

    source: str | None = None
    """Folder of a run, of one of its checkpoints, or a model (name, folder, hub id), which then is untrained. None: no
    model; memories are kept and searched, and whatever needs a manager or an answerer is refused."""
    db: str = "memory.db"
    """SQLite file, or URL such as postgresql+psycopg://user@host/database."""
    keys: str | None = None
    """File with API keys (`memr1 keys`); None: programs on this machine may do everything, others nothing."""
    runs: str | None = None
    """Folder of training runs that the console may show; None: none."""
    runs_tenant: str = "default"
    """Tenant whose admin keys see `runs`, if they are limited to no user, agent or run."""
    embedder: str | None = None
    """`minilm`, `hash`, a folder or a hub id; None takes the run's, or minilm."""
    extractor: str = "utterance"
    """How messages become facts: `utterance` takes each user message as it stands, `llm` asks the base model."""
    max_body_bytes: int = 1 << 20
    """Largest request body; imports may be 64 times as large. Larger ones get 413."""
    max_in_flight: int = 256
    """Requests worked on at a time; more get 429."""
    max_queue: int = 256
    """Generations that may wait for the model; more get 429."""
    max_batch: int = 64
    """Generations in one round of the model."""
    timeout_s: float = 60.0
    """Longest time for one generation, waiting included; then it is given up and the answer is 504. A request with many
    messages has one after the other. What was written before is kept."""
    body_timeout_s: float = 20.0
    """Time for a request's head, for its body, and again for each MiB of it; then 408."""
    send_timeout_s: float = 60.0
    """Longest wait for a client to take the next 256 KiB of its answer; then the connection is closed, and cut off if
    what was sent already is not taken in the same time."""
    max_deletes: int = 3
    """DELETEs that the manager may make in one request; a decision that would go beyond is refused as a whole."""
    guards: bool = True
    """Hold writes that speak to a program instead of telling something, and those by which an untrusted source would
    change what a trusted one said, until an operator releases or drops them (docs/serving.md)."""
    max_held: int = 10_000
    """Held writes of a tenant; one more is refused with 429."""
    max_entries: int | None = 100_000
    """Live entries of a bank that is made by the service; None: no limit."""
    max_banks: int = 100_000
    """Banks of a tenant; one more is refused with 413."""
    max_open_banks: int = 256
    """Banks kept in memory; those that were not used for longest are read again when somebody asks for them."""
    cached_vectors: int = 10_000
    """Embedded texts, and as many questions, kept in memory; those of entries are in the database, too."""
    job_days: float = 7.0
    """Days for which one can ask what became of a job."""
    traces: bool = False
    """Send spans to the collector that the OTEL_* variables name (`pip install memr1[otel]`)."""
    threads: int = 0
    """CPU threads of the model; 0 takes all cores."""

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes",
            "max_in_flight",
            "max_queue",
            "max_batch",
            "max_banks",
            "max_held",
            "max_open_banks",
            "cached_vectors",
            "job_days",
            "timeout_s",
            "body_timeout_s",
            "send_timeout_s",
        ):
            if not getattr(self, name) > 0:
                raise MemR1Error(f"serving.{name}: a number above 0 is needed, got {getattr(self, name)!r}")
        if self.runs is not None and not Path(self.runs).is_dir():
            raise MemR1Error(f"serving.runs: {self.runs}: no such folder; name the one that holds the folders of runs")
        if self.extractor not in ("utterance", "llm"):
            raise MemR1Error(f"serving.extractor: {self.extractor!r} is not known; use utterance or llm")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> ServingConfig:
        """Settings from plain values; `MemR1Error` names `where`, the field and the nearest known one."""
        return build_section(cls, dict(values), where)
