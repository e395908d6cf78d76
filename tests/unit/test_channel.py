"""A channel between a sender and receivers: what is sent arrives bit for bit, and nobody waits for ever.

Processes are played by threads, each with its own end. With Ray's actors: tests/ray/test_weight_transfer.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from memr1.rollout import channel
from memr1.rollout.channel import Channel, Meeting, manifest_of

CPU = torch.device("cpu")


def tensors(device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """Several types and shapes, one of them not contiguous."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(7, 5, generator=generator)
    made = {"b.matrix": wide.t(), "a.half": wide.bfloat16(), "c.scalar": torch.tensor(2.5), "d.long": torch.arange(9)}
    return {name: t.to(device) for name, t in made.items()}


def meet(size: int, timeout_s: float = 20.0) -> Meeting:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Meeting("127.0.0.1", probe.getsockname()[1], size, timeout_s)


def together(devices: list[torch.device], act: Callable[[Channel, int], Any]) -> list[Any]:
    """What each end of a channel gets from `act(channel, rank)`."""
    meeting = meet(len(devices))

    def end(rank: int) -> Any:
        made = Channel(meeting, rank, devices[rank])
        try:
            return act(made, rank)
        finally:
            made.close()

    with ThreadPoolExecutor(len(devices)) as threads:
        return list(threads.map(end, range(len(devices))))


def exchange(devices: list[torch.device], *, checked: bool) -> None:
    def act(end: Channel, rank: int) -> Any:
        own = tensors(devices[rank])
        if rank == 0:
            return [end.send({n: t * k for n, t in own.items()}, checked=checked) for k in (1, 2)]
        return [end.receive(manifest_of(own)) for _ in (1, 2)]

    _, *received = together(devices, act)
    for device, pair in zip(devices[1:], received, strict=True):
        for k, got in zip((1, 2), pair, strict=True):
            assert list(got) == list(tensors())
            for name, t in tensors(device).items():
                assert got[name].dtype == t.dtype and got[name].device == device
                assert torch.equal(got[name], t * k), name


@pytest.mark.parametrize("checked", [True, False])
def test_all_receivers_get_what_was_sent_bit_for_bit_again_and_again(checked: bool) -> None:
    exchange([CPU, CPU, CPU], checked=checked)


@pytest.mark.gpu
def test_weights_go_from_gpu_to_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: NCCL takes no two ends on one")
    exchange([torch.device("cuda", n) for n in range(min(torch.cuda.device_count(), 4))], checked=True)


def test_damage_on_the_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(end: Channel, rank: int) -> Any:
        if rank == 0:
            return end.send(tensors(), checked=True)
        whole = end._broadcast

        def damage(parts: list[torch.Tensor]) -> None:
            whole(parts)
            if len(parts) > 1:
                parts[0][2, 3] += 1e-6

        monkeypatch.setattr(end, "_broadcast", damage)
        with pytest.raises(ValueError, match="damaged on the way: checksum differs"):
            end.receive(manifest_of(tensors()))
        return None

    together([CPU, CPU], act)


def test_a_receiver_that_does_not_come_or_goes_is_an_error_in_time_and_not_a_hang() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        Channel(meet(2, timeout_s=1.0), 0, CPU)

    def act(end: Channel, rank: int) -> Any:
        if rank == 1:
            return None  # closed at once
        with pytest.raises(RuntimeError):
            for _ in range(50):
                end.send({"large": torch.zeros(10**6)}, checked=False)
                time.sleep(0.1)
        return None

    together([CPU, CPU], act)
    assert time.monotonic() - start < 60


def test_the_variable_that_makes_nccl_raise_is_set_while_a_group_is_made_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    name = "TORCH_NCCL_BLOCKING_WAIT"
    for before in (None, "0"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
        with channel._errors_are_raised():
            assert os.environ[name] == "1"
        assert os.environ.get(name) == before
