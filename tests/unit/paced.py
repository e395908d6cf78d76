"""A model for a process of its own: files in a folder say what it does, and it writes there what it did."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving.inference import Inference

BROKEN = 666
"""A last token of a prompt with which no round ends."""


class Paced:
    """Completes a prompt that ends with n as n, n + 1, n + 2. While there is a file `hold` it stays at the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def generate(self, requests: Sequence[GenerationRequest], watch: Any = None) -> list[Completion]:
        """See `WatchedEngine.generate`. Each round is a line of the file `rounds`: process, last tokens of prompts."""
        first = [r.prompt_ids[-1] for r in requests]
        with (self._folder / "rounds").open("a") as file:
            file.write(f"{os.getpid()} {' '.join(map(str, first))}\n")
        if BROKEN in first:
            raise RuntimeError("out of memory")
        ids: list[list[int]] = [[] for _ in requests]
        going = list(range(len(requests)))
        for step in range(3):
            for i in going:
                ids[i].append(first[i] + step)
            going = [i for i in going if watch(i, first[i] + step)]
            while (self._folder / "hold").exists():
                time.sleep(0.005)
        return [Completion(tuple(of), tuple(-1.0 for _ in of), "stop", 1) for of in ids]


def load(folder: Path, max_queue: int = 256) -> Inference:
    """An `Inference` over `Paced`. Files `refused`, `crash` and `endless` are what can come in between."""
    (folder / "loading").write_text(str(os.getpid()))
    if (folder / "refused").exists():
        raise MemR1Error((folder / "refused").read_text())
    if (folder / "crash").exists():
        os._exit(7)
    while (folder / "endless").exists():
        time.sleep(0.005)
    return Inference(Paced(folder), max_queue=max_queue)
