"""A broadcast from one process to some others: how weights go from a learner to runners without leaving the GPUs.

The default process group of a learner's process is DeepSpeed's. A channel is a group of its own beside it, and is made
anew when one of its processes is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from memr1.rollout.engine import checksum

Manifest = Mapping[str, tuple[tuple[int, ...], str]]
"""name -> (shape, dtype), in the order in which tensors travel."""


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a channel meet, and for how long each waits for the others, also in every broadcast."""

    address: str
    port: int
    size: int
    """The sender, whose rank is 0, and the receivers."""
    timeout_s: float


class Channel:
    """NCCL between GPUs, gloo between CPUs. All processes must make the same calls in the same order.

    Raises RuntimeError (torch's own) when another process is gone or late; the channel is of no use then.
    """

    def __init__(self, meeting: Meeting, rank: int, device: torch.device) -> None:
        from torch import distributed

        self.device = device
        timeout = timedelta(seconds=meeting.timeout_s)
        store = distributed.TCPStore(
            meeting.address, meeting.port, meeting.size, rank == 0, timeout=timeout, wait_for_workers=False
        )
        self._options = distributed.BroadcastOptions()
        self._options.rootRank, self._options.timeout = 0, timeout
        self._group: Any
        if device.type == "cuda":
            with _errors_are_raised():
                options = distributed.ProcessGroupNCCL.Options()
                options._timeout = timeout
                self._group = distributed.ProcessGroupNCCL(store, rank, meeting.size, options)
        else:
            self._group = distributed.ProcessGroupGloo(store, rank, meeting.size, timeout)

    def send(self, tensors: Mapping[str, Tensor], *, checked: bool) -> None:
        """Give tensors on this device to all receivers. checked: with a checksum."""
        digest = _digest(tensors) if checked else bytes(DIGEST_BYTES)
        self._broadcast([t.contiguous() for t in tensors.values()])
        self._broadcast([torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.device)])

    def receive(self, manifest: Manifest) -> dict[str, Tensor]:
        """What was sent, in new tensors on this device. Raises ValueError where it was damaged on the way."""
        tensors = {
            name: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=self.device)
            for name, (shape, dtype) in manifest.items()
        }
        self._broadcast(list(tensors.values()))
        digest = torch.empty(DIGEST_BYTES, dtype=torch.uint8, device=self.device)
        self._broadcast([digest])
        expected = bytes(digest.tolist())
        if any(expected) and expected != _digest(tensors):
            raise ValueError("weights were damaged on the way: checksum differs")
        return tensors

    def _broadcast(self, tensors: list[Tensor]) -> None:
        for work in [self._group.broadcast([t], self._options) for t in tensors]:
            work.wait()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the next kernels run on another stream than NCCL's

    def close(self) -> None:
        """Let go of the other processes, also of those that hang."""
        self._group.abort()


DIGEST_BYTES = 16


def manifest_of(tensors: Mapping[str, Tensor]) -> Manifest:
    """What receivers have to make room for."""
    return {name: (tuple(t.shape), str(t.dtype)) for name, t in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    """`checksum` of the bytes of tensors of any type."""
    raw = {name: t.contiguous().reshape(-1).view(torch.uint8).cpu().numpy() for name, t in tensors.items()}
    return bytes.fromhex(checksum(raw))


@contextmanager
def _errors_are_raised() -> Iterator[None]:
    """While a group of NCCL is made: left to itself, it ends the whole process when another does not answer."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
