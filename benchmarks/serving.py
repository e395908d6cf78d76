"""The service's speed over loopback: answers against the bare engine, the gateway's own time, searches and writes.

    python benchmarks/serving.py [SOURCE] [--ray] [--quick]
    python benchmarks/serving.py [SOURCE] [--ray] --soak SECONDS

SOURCE: a run or a model, by default smollm2-135m untrained (its answers cost the same). Every ratio has both its sides
in this run: the bare engine generates the very prompts of the answers, in batches as large as there are clients. The
load comes from this process, so client and service share the machine's cores. `--soak` holds a mixed load with kills
in between and checks what the service promises; see serving_soak.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from serving_soak import soak

PEOPLE = ("Mara", "Ben", "Ada", "Ines", "Olaf", "Tariq", "Wen", "Zoe")
PLACES = ("Oslo", "Rome", "Bergen", "Lima", "Quito", "Turin", "Ghent", "Osaka")
WHOSE = {"user_id": "bench"}
NOTES = "/v1/banks/notes"
SMALL = ("max_open_banks=32", "cached_vectors=2000")
"""Of a soak: so that what may fill up is full soon, and banks that had left memory are opened again."""


def facts(n: int) -> list[str]:
    """n different short facts."""
    return [f"{PEOPLE[i % 8]} kept item {i} at the house in {PLACES[i // 8 % 8]}." for i in range(n)]


def question(i: int) -> str:
    """A question about the facts; no two are alike, so that nothing is answered once for several."""
    return f"Where did {PEOPLE[i % 8]} keep item {i}?"


def bare(source: str, clients: Sequence[int], rounds: int, entries: int) -> dict[int, float]:
    """Answers a second of the engine alone, by batch size: prompts are made beforehand."""
    from memr1.memory import Event, MemoryBank, MemoryOp, load_embedder
    from memr1.rollout.engine import GenerationRequest, SamplingParams
    from memr1.serving.source import find_source, load_runner

    found = find_source(source)
    runner = load_runner(found, 0)
    bank = MemoryBank("bench", load_embedder("hash"))
    bank.apply([MemoryOp(Event.ADD, text) for text in facts(entries)])
    k, limit = min(5, found.config.memory.answerer_top_k), found.config.rollout.answer_max_new_tokens

    def request(i: int) -> GenerationRequest:
        hits = [hit.entry for hit in bank.search(question(i), k)]
        return GenerationRequest(
            runner.world.agents.answerer.prompt(question(i), hits).ids, "answerer", SamplingParams(limit)
        )

    speeds = {}
    for size in clients:
        batches = [[request(r * size + i) for i in range(size)] for r in range(rounds)]
        runner.engine.generate(batches[0])
        start = time.perf_counter()
        for batch in batches:
            runner.engine.generate(batch)
        speeds[size] = size * rounds / (time.perf_counter() - start)
    return speeds


class Served:
    """A service of its own in other processes, on a free port of loopback."""

    ROLES = (
        ("memr1.serving.model_process", "model"),
        ("ServeReplica:memr1:gateway", "gateway"),
        ("ServeReplica:memr1:model", "model"),
        ("BankOwner", "owner"),
    )
    """Part of a child's command line, and what it is."""

    def __init__(self, source: str, folder: Path, on_ray: bool, *settings: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url, self._on_ray, self._log = f"http://127.0.0.1:{port}", on_ray, folder / "serve.log"
        self._command = [sys.executable, "-m", "memr1.cli", "serve", source, "--port", str(port)]
        self._command += ["--db", str(folder / "memory.db"), "--set", "embedder=hash", *(["--ray"] if on_ray else [])]
        for setting in settings:
            self._command += ["--set", setting]
        self._start()

    def _start(self) -> None:
        with self._log.open("a") as log:
            self._process = psutil.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + 600
        while True:
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                raise SystemExit(f"the service did not start:\n{self._log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)

    def processes(self) -> dict[str, psutil.Process]:
        """Processes by role: `service` and `model`, or on Ray Serve `gateway`, `model` and `owner`."""
        found = {} if self._on_ray else {"service": self._process}
        for process in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                name = " ".join(process.cmdline())
                found.update({role: process for part, role in self.ROLES if part in name})
        return found

    def kill(self, role: str) -> None:
        """SIGKILL. Ray and the service bring their processes back; the service itself is started again, when its model
        has ended, too."""
        processes = self.processes()
        processes[role].kill()
        if role == "service":
            _, left = psutil.wait_procs(processes.values(), 30)
            if left:
                raise SystemExit(f"processes that outlive their service: {left}")
            self._start()

    def stop(self) -> None:
        """End it in order."""
        self._process.send_signal(signal.SIGINT if self._on_ray else signal.SIGTERM)
        try:
            self._process.wait(90)
        except psutil.TimeoutExpired:
            self._process.kill()


@contextlib.contextmanager
def served(source: str, folder: Path, on_ray: bool, *settings: str) -> Iterator[Served]:
    """A service while the context lasts."""
    service = Served(source, folder, on_ray, *settings)
    try:
        yield service
    finally:
        service.stop()


async def load(clients: int, total: int, ask: Callable[[int], Awaitable[Any]]) -> tuple[float, list[float]]:
    """Requests a second, and seconds of each, when so many clients ask one thing after the other."""
    numbers = iter(range(total))
    seconds: list[float] = []

    async def one() -> None:
        for i in numbers:
            start = time.perf_counter()
            await ask(i)
            seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return total / (time.perf_counter() - start), seconds


def show(what: str, rate: float, seconds: Sequence[float], note: str = "") -> None:
    """One line."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    print(f"{what:<44} {rate:9.1f}/s   p50 {p50:8.2f} ms   p99 {p99:8.2f} ms   {note}".rstrip(), flush=True)


async def measure(url: str, engine: dict[int, float], rounds: int, entries: int, reads: int) -> None:
    """Everything over HTTP."""
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:

        async def post(path: str, body: dict[str, Any], **options: Any) -> dict[str, Any]:
            response = await http.post(path, json=body, **options)
            response.raise_for_status()
            return dict(response.json())

        told = [{"content": text} for text in facts(entries)]
        for i in range(0, entries, 100):
            await post(f"{NOTES}/memories", {"messages": told[i : i + 100], "infer": False}, params=WHOSE)

        async def answer(i: int) -> None:
            await post("/v1/answer", {"question": question(i), "top_k": 5, **WHOSE})

        await answer(0)
        for clients, alone in engine.items():
            rate, seconds = await load(clients, clients * rounds, answer)
            show(f"answers, {clients} clients", rate, seconds, f"engine alone {alone:.1f}/s, ratio {rate / alone:.2f}")

        async def get(i: int) -> None:
            (await http.get(f"{NOTES}/memories/m{i % entries + 1}", params=WHOSE)).raise_for_status()

        await get(0)
        show("gateway: one read, 1 client", *await load(1, reads, get))

        async def search(i: int) -> None:
            await post(f"{NOTES}/search", {"query": question(i), "k": 5}, params=WHOSE)

        await search(0)
        show(f"search in {entries} entries, 64 clients", *await load(64, reads, search))

        async def add(i: int) -> None:
            await post("/v1/banks/new/memories", {"text": f"new fact {i}", "infer": False}, params=WHOSE)

        await add(-1)
        show("verbatim add, 64 clients", *await load(64, reads, add))
        first: list[float] = []
        for i in range(rounds):
            chat = {"model": "memr1", "messages": [{"role": "user", "content": question(i)}], "stream": True}
            start = time.perf_counter()
            async with http.stream("POST", "/v1/chat/completions", json={**chat, "user": "bench"}) as response:
                async for line in response.aiter_lines():
                    if '"content": "' in line and '"content": ""' not in line:
                        first.append(time.perf_counter() - start)
                        break
        show("first words of a stream, 1 client", 1 / float(np.mean(first)), first)


def main() -> None:
    """Print the machine, then one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="smollm2-135m")
    parser.add_argument("--ray", action="store_true", help="on Ray Serve; without --soak, after uvicorn")
    parser.add_argument("--quick", action="store_true", help="a little of the work, to see that it runs")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="hold a load with kills in between instead")
    parser.add_argument("--kills", type=int, default=6, help="with --soak")
    args = parser.parse_args()
    clients, rounds, entries, reads = ([1, 4], 2, 50, 128) if args.quick else ([1, 8, 32], 8, 1000, 2000)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}; {args.source}")
    if args.soak:
        print(f"soak under {'Ray Serve' if args.ray else 'uvicorn'}")
        with tempfile.TemporaryDirectory() as name, served(args.source, Path(name), args.ray, *SMALL) as at:
            kept = soak(at, args.soak, args.kills)
        raise SystemExit(0 if kept else 1)
    engine = bare(args.source, clients, rounds, entries)
    for on_ray in (False, True) if args.ray else (False,):
        print(f"under {'Ray Serve' if on_ray else 'uvicorn'}", flush=True)
        with tempfile.TemporaryDirectory() as name, served(args.source, Path(name), on_ray) as at:
            asyncio.run(measure(at.url, engine, rounds, entries, reads))


if __name__ == "__main__":
    main()
