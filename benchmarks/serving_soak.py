"""The service under load at saturation, with kills in between: `python benchmarks/serving.py SOURCE --soak SECONDS`.

Clients add (verbatim, as jobs, and through the manager), search for what they added, ask, listen to streams, break off
and send nonsense, one request after the other. In the first half of the time processes are killed with SIGKILL and
come back: the service itself and its model under uvicorn, owner, model and gateway on Ray Serve. The second half is
left alone, so that memory and open files can be seen to be flat, and what is still held some seconds after the load,
beside what there was at first. Then every bank is read and compared with what was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import numpy as np
import psutil

WHOSE = {"user_id": "soak"}
PER_BANK = 200
"""Entries of a writer's bank before it turns to the next one, so that old banks can leave memory."""
SETTLED_S = 60.0
"""A process is judged flat when it has lived at least so long."""
IDLE_S = 10.0
"""Memory is looked at once more so long after the last client has ended."""
GROWTH = 0.05
"""Growth of memory between the second and the last quarter of a life that still counts as flat, and 16 MiB."""


class Service(Protocol):
    """What is under load."""

    url: str

    def processes(self) -> dict[str, psutil.Process]:
        """Its processes by role; those that can be killed."""

    def kill(self, role: str) -> None:
        """SIGKILL one, and see that it comes back."""


@dataclass
class Seen:
    """What clients saw."""

    acknowledged: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Bank -> texts."""
    decisions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Bank -> numbers of the manager's decisions."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by exception."""
    not_json: list[str] = field(default_factory=list)
    invisible: list[str] = field(default_factory=list)
    """What was acknowledged and a search right after it did not find."""
    wrong: list[str] = field(default_factory=list)
    last_write: float = 0.0
    restarting: bool = False
    """A process was killed and is not back yet."""


@dataclass
class Life:
    """A process over time."""

    role: str
    born: float
    rss: list[int] = field(default_factory=list)
    idle_rss: int | None = None
    """After the load; None for a process that had ended before."""
    files: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)


class Load:
    """The clients of one service."""

    def __init__(self, url: str, seen: Seen, seed: int = 0) -> None:
        self._url, self._seen, self._seed = url, seen, seed
        self._stopping = False
        self._recent: list[tuple[str, str]] = []

    def stop(self) -> None:
        """Let everybody finish what they do."""
        self._stopping = True

    async def run(self) -> None:
        """All clients, until `stop`."""
        kinds: list[tuple[int, Callable[[httpx.AsyncClient, int], Any]]] = [
            (8, self._write),
            (2, self._job),
            (2, self._tell),
            (6, self._search),
            (4, self._ask),
            (2, self._listen),
            (2, self._nonsense),
        ]
        async with AsyncExitStack() as stack:
            clients = []
            for count, work in kinds:
                for i in range(count):
                    http = await stack.enter_async_context(httpx.AsyncClient(base_url=self._url, timeout=60))
                    clients.append(work(http, i))
            await asyncio.gather(*clients)

    async def _request(self, http: httpx.AsyncClient, kind: str, method: str, path: str, **options: Any) -> Any:
        """The answer; None when there was none."""
        start = time.perf_counter()
        try:
            response = await http.request(method, path, **options)
        except httpx.HTTPError as error:
            self._seen.broken[type(error).__name__] += 1
            await asyncio.sleep(0.05)
            return None
        self._seen.seconds[kind].append(time.perf_counter() - start)
        self._note(kind, response)
        return response

    def _note(self, kind: str, response: httpx.Response) -> None:
        self._seen.statuses[kind, response.status_code] += 1
        if response.status_code < 400:
            return
        try:
            body = response.json()
            whole = "code" in body.get("error", body) and ("error" in body or "detail" in body)
        except (ValueError, AttributeError):
            whole = False
        if not whole:
            self._seen.not_json.append(f"{kind} {response.status_code}: {response.text[:100]!r}")

    async def _until_acknowledged(self, http: httpx.AsyncClient, kind: str, path: str, body: Any, key: str) -> Any:
        """The same request under the same key until somebody says that it is done."""
        while True:
            response = await self._request(
                http, kind, "POST", path, params=WHOSE, json=body, headers={"Idempotency-Key": key}
            )
            if response is not None and response.status_code not in (429, 500, 502, 503, 504):
                return response
            if self._stopping:
                return None
            await asyncio.sleep(0.05)

    async def _write(self, http: httpx.AsyncClient, who: int) -> None:
        n = 0
        while not self._stopping:
            bank, text = f"w{who}-{n // PER_BANK}", f"writer {who} kept item {n}"
            body = {"text": text, "infer": False}
            path = f"/v1/banks/{bank}/memories"
            response = await self._until_acknowledged(http, "verbatim add", path, body, f"{who}-{n}")
            if response is not None and response.status_code == 200:
                self._seen.acknowledged[bank].add(text)
                self._seen.last_write = time.monotonic()
                self._recent.append((bank, text))
                del self._recent[:-64]
            elif response is not None:
                self._seen.wrong.append(f"write {bank} {text}: {response.status_code} {response.text[:200]}")
            n += 1

    async def _job(self, http: httpx.AsyncClient, who: int) -> None:
        n = 0
        while not self._stopping:
            bank, text = f"j{who}-{n // PER_BANK}", f"job {who} kept item {n}"
            body = {"text": text, "infer": False, "wait": False}
            path = f"/v1/banks/{bank}/memories"
            response = await self._until_acknowledged(http, "job", path, body, f"{who}-{n}")
            if response is not None and response.status_code == 202:
                self._seen.acknowledged[bank].add(text)
            n += 1
            await asyncio.sleep(0.05)

    async def _tell(self, http: httpx.AsyncClient, who: int) -> None:
        n = 0
        while not self._stopping:
            bank = f"m{who}-{n // 20}"
            body = {"text": f"Person {n} lives in town {n}."}
            path = f"/v1/banks/{bank}/memories"
            response = await self._until_acknowledged(http, "manager add", path, body, f"{who}-{n}")
            if response is not None and response.status_code == 200:
                found = response.json()["decisions"]
                self._seen.decisions[bank] |= {d["seq"] for d in found if d["seq"] is not None and d["operations"]}
            n += 1

    async def _search(self, http: httpx.AsyncClient, who: int) -> None:
        rng = random.Random(self._seed + who)
        while not self._stopping:
            if not self._recent:
                await asyncio.sleep(0.05)
                continue
            bank, text = rng.choice(self._recent)
            body = {"query": text, "k": 3}
            path = f"/v1/banks/{bank}/search"
            response = await self._request(http, "search", "POST", path, params=WHOSE, json=body)
            if response is not None and response.status_code == 200:
                found = [hit["text"] for hit in response.json()["results"]]
                if text not in found:
                    self._seen.invisible.append(f"{bank}: {text}")

    async def _ask(self, http: httpx.AsyncClient, who: int) -> None:
        n = 0
        while not self._stopping:
            body = {"question": f"What did writer {who} keep, item {n}?", "bank": f"w{who}-0", "top_k": 5, **WHOSE}
            await self._request(http, "answer", "POST", "/v1/answer", json=body)
            n += 1

    async def _listen(self, http: httpx.AsyncClient, who: int) -> None:
        n = 0
        while not self._stopping:
            chat = {"model": "memr1", "messages": [{"role": "user", "content": f"Item {n}?"}], "stream": True}
            body = {**chat, "memory": {**WHOSE, "bank": f"w{who}-0"}}
            start = time.perf_counter()
            try:
                async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                    if response.status_code >= 400:
                        await response.aread()
                    self._note("stream", response)
                    async for _ in response.aiter_lines():
                        if n % 3 == 0:
                            break  # hang up in the middle
                self._seen.seconds["stream"].append(time.perf_counter() - start)
            except httpx.HTTPError as error:
                self._seen.broken[type(error).__name__] += 1
                await asyncio.sleep(0.05)
            n += 1

    async def _nonsense(self, http: httpx.AsyncClient, who: int) -> None:
        at = "/v1/banks/nonsense"  # of its own: what is rejected is a decision, too
        seed = {"text": "m1", "infer": False}
        await self._until_acknowledged(http, "verbatim add", f"{at}/memories", seed, "seed")
        bad: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", f"{at}/memories", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
            ("POST", f"{at}/memories", {"json": {"text": 7, "infer": "maybe"}}),
            ("GET", f"{at}/memories/m999999", {}),
            ("GET", "/v1/banks/of-nobody/memories", {}),
            ("POST", f"{at}/memories", {"content": b"x" * (2 << 20)}),
            ("GET", "/nowhere", {}),
            ("POST", "/search", {"json": {"query": "x", "filters": {"OR": []}}}),
            ("PATCH", f"{at}/memories/m1", {"json": {"text": "x"}, "headers": {"If-Match": '"999"'}}),
        ]
        n = who
        while not self._stopping:
            method, path, options = bad[n % len(bad)]
            response = await self._request(http, "nonsense", method, path, params=WHOSE, **options)
            if response is not None and response.status_code < 400:
                self._seen.wrong.append(f"{method} {path} {options} was taken: {response.status_code}")
            n += 1
            await asyncio.sleep(0.02)


async def watch(service: Service, seen: Seen, lives: dict[int, Life], seconds: float) -> None:
    """Look twice a second, except while the service is started again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not seen.restarting:
            look(service, lives)
        await asyncio.sleep(0.5)


def look(service: Service, lives: dict[int, Life]) -> None:
    """Note memory and open files of every process."""
    for role, process in service.processes().items():
        try:
            rss, files = process.memory_info().rss, process.num_fds()
        except psutil.Error:
            continue
        life = lives.setdefault(process.pid, Life(role, time.monotonic()))
        life.rss.append(rss)
        life.files.append(files)
        life.at.append(time.monotonic())


async def look_when_idle(service: Service, lives: dict[int, Life]) -> None:
    """Note what memory every process still has when nobody has asked for anything for a while."""
    await asyncio.sleep(IDLE_S)
    for process in service.processes().values():
        if process.pid in lives:
            lives[process.pid].idle_rss = process.memory_info().rss


async def kill_in_turn(service: Service, seen: Seen, seconds: float, kills: int) -> list[tuple[float, str, float]]:
    """(second, role, seconds until the next acknowledged write) of each kill, in the first half of the time."""
    begun, done = time.monotonic(), []
    for i in range(kills):
        await asyncio.sleep(max(0.0, begun + seconds / 2 * (i + 0.5) / kills - time.monotonic()))
        roles = sorted(service.processes())
        role = roles[i % len(roles)]
        at = time.monotonic()
        seen.restarting = True
        await asyncio.to_thread(service.kill, role)
        seen.restarting = False
        back = time.monotonic()
        while seen.last_write < back and time.monotonic() < back + 60:
            await asyncio.sleep(0.02)
        done.append((at - begun, role, time.monotonic() - at))
    return done


async def pages(http: httpx.AsyncClient, bank: str) -> AsyncIterator[dict[str, Any]]:
    """Every entry of a bank."""
    offset = 0
    while True:
        asked: dict[str, Any] = {**WHOSE, "offset": offset, "limit": 1000}
        page = (await http.get(f"/v1/banks/{bank}/memories", params=asked)).raise_for_status().json()
        for memory in page["memories"]:
            yield memory
        offset += 1000
        if offset >= page["total"]:
            return


async def compare(url: str, seen: Seen) -> dict[str, int]:
    """What is in the banks beside what was acknowledged."""
    found = Counter[str]()
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        end = time.monotonic() + 120
        for bank, texts in sorted(seen.acknowledged.items()):
            while True:  # jobs that were accepted last may still be done
                there = Counter([m["text"] async for m in pages(http, bank)])
                if texts <= there.keys() or time.monotonic() > end:
                    break
                await asyncio.sleep(0.2)
            info = (await http.get(f"/v1/banks/{bank}", params=WHOSE)).raise_for_status().json()
            found["acknowledged"] += len(texts)
            found["missing"] += len(texts - there.keys())
            # a second time would be rejected as a duplicate, or be a second entry, or a second decision
            found["doubled"] += sum(there.values()) - len(there) + sum(info["rejected"].values())
            found["doubled"] += info["seq"] - len(there)
        for bank, numbers in sorted(seen.decisions.items()):
            log = (await http.get(f"/v1/banks/{bank}/log", params={**WHOSE, "limit": 1000})).raise_for_status().json()
            keys = Counter(r["idempotency_key"] for r in log["records"])
            found["acknowledged"] += len(numbers)
            found["missing"] += len(numbers - {r["seq"] for r in log["records"]})
            found["doubled"] += sum(n - 1 for n in keys.values())
    return dict(found)


def flat(life: Life) -> bool | None:
    """Whether memory and open files stay; None for a life that was too short to tell."""
    if life.at[-1] - life.born < SETTLED_S:
        return None
    quarter = len(life.at) // 4
    early, late = (float(np.median(part)) for part in (life.rss[quarter : 2 * quarter], life.rss[-quarter:]))
    files = max(life.files[-quarter:]) <= max(life.files[quarter : 2 * quarter]) + 8
    return files and late <= early * (1 + GROWTH) + (16 << 20)


def soak(service: Service, seconds: float, kills: int) -> bool:
    """Run it, print what came of it, and say whether every promise was kept."""
    seen, lives = Seen(), dict[int, Life]()
    killed: list[tuple[float, str, float]] = []

    async def all_of_it() -> dict[str, int]:
        load = Load(service.url, seen)
        clients = asyncio.create_task(load.run())
        watching = asyncio.create_task(watch(service, seen, lives, seconds))
        killed.extend(await kill_in_turn(service, seen, seconds, kills))
        await watching
        look(service, lives)  # whoever came back at the end has not been seen yet
        load.stop()
        await clients
        await look_when_idle(service, lives)
        return await compare(service.url, seen)

    found = asyncio.run(all_of_it())
    print(f"\n{'request':<14}{'answers':>9}{'/s':>9}{'p50 ms':>9}{'p99 ms':>9}   by status")
    for kind, took in sorted(seen.seconds.items()):
        p50, p99 = np.percentile(took, [50, 99]) * 1e3
        by = ", ".join(f"{s}: {n}" for (k, s), n in sorted(seen.statuses.items()) if k == kind)
        print(f"{kind:<14}{len(took):>9}{len(took) / seconds:>9.1f}{p50:>9.1f}{p99:>9.1f}   {by}")
    print(f"without an answer: {json.dumps(seen.broken)}")
    for at, role, away in killed:
        print(f"killed at {at:6.1f} s: {role:<8} next acknowledged write after {away:5.2f} s")
    memory = f"{'MiB at first':>14}{'early':>8}{'late':>8}{'idle':>8}"
    print(f"\n{'process':<10}{'lived s':>9}{memory}{'files early':>13}{'late':>6}   flat")
    for life in lives.values():
        q = max(1, len(life.at) // 4)
        early, late = (np.median(part) for part in (life.rss[q : 2 * q] or life.rss, life.rss[-q:]))
        sizes = "".join(f"{size / 2**20:>8.1f}" for size in (life.rss[0], early, late))
        idle = "-" if life.idle_rss is None else f"{life.idle_rss / 2**20:.1f}"
        files = max(life.files[q : 2 * q] or life.files), max(life.files[-q:])
        said = {None: "-", True: "yes", False: "NO"}[flat(life)]
        lived = life.at[-1] - life.born
        print(f"{life.role:<10}{lived:>9.1f}{sizes:>30}{idle:>8}{files[0]:>13}{files[1]:>6}   {said}")
    # a manager that is not trained writes what nobody can read, and 422 says so
    answered = Counter(kind for kind, status in seen.statuses if status < 400 or (kind, status) == ("manager add", 422))
    never = [kind for kind in seen.seconds if not answered[kind] and kind != "nonsense"]
    errors = sum(n for (_, status), n in seen.statuses.items() if status >= 400)
    checks = {
        f"acknowledged writes {found.get('acknowledged', 0)}, missing": found.get("missing", 0),
        "applied more than once": found.get("doubled", 0),
        "acknowledged and not found by a search": len(seen.invisible),
        f"error bodies {errors}, not JSON": len(seen.not_json),
        "answers that should not have been": len(seen.wrong),
        "answers with 500, which is a bug's": sum(n for (_, status), n in seen.statuses.items() if status == 500),
        f"kinds of request that were never answered ({', '.join(never) or 'none'})": len(never),
        "processes whose memory or files grew": sum(flat(life) is False for life in lives.values()),
    }
    print()
    for what, number in checks.items():
        print(f"{what}: {number}")
    for example in (*seen.not_json[:5], *seen.wrong[:5], *seen.invisible[:5]):
        print(f"  {example}")
    return not any(checks.values()) and found.get("acknowledged", 0) > 0
