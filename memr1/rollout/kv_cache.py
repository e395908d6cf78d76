"""A key-value cache that leaves room for the tokens and rows to come.

transformers' DynamicCache concatenates at every decoded token and so copies the whole cache each time; with dozens of
rows that costs as much as the model itself. Here decoding writes into room set aside once, and a row that parts into
two is copied alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class _RoomyLayer(DynamicLayer):
    """A DynamicLayer whose tensors are views of the front of larger buffers once `make_room` was called."""

    _key_room: torch.Tensor | None = None
    _value_room: torch.Tensor | None = None
    _most_rows = 0

    def make_room(self, tokens: int, most_rows: int) -> None:
        self._most_rows = most_rows
        assert self.keys is not None and self.values is not None
        rows, length = self.keys.shape[0], self.keys.shape[-2]
        self._key_room = _with_room(self.keys, rows, length + tokens)
        self._value_room = _with_room(self.values, rows, length + tokens)
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]

    def copy_rows(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        keys, values = self._key_room, self._value_room
        if keys is None or values is None or self.keys is None or self.values is None:
            raise RuntimeError("rows are copied in a cache with room; call make_room first")
        length = self.keys.shape[-2]
        needed = max(self.keys.shape[0], int(targets.max()) + 1)
        if needed > keys.shape[0]:
            # by half again, so that rows which part one by one do not copy everything each time
            rows = max(needed, min(keys.shape[0] * 3 // 2, self._most_rows))
            self._key_room = keys = _with_room(self.keys, rows, keys.shape[-2])
            self._value_room = values = _with_room(self.values, rows, values.shape[-2])
        keys[targets, :, :length] = keys[sources, :, :length]
        values[targets, :, :length] = values[sources, :, :length]
        self.keys, self.values = keys[:needed, :, :length], values[:needed, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        room_keys, room_values = self._key_room, self._value_room
        if room_keys is None or room_values is None or self.keys is None:
            return super().update(key_states, value_states, *args, **kwargs)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > room_keys.shape[-2]:
            raise RuntimeError(f"room for {room_keys.shape[-2]} tokens was set aside, {end} are needed")
        rows = self.keys.shape[0]
        room_keys[:rows, :, start:end] = key_states
        room_values[:rows, :, start:end] = value_states
        self.keys, self.values = room_keys[:rows, :, :end], room_values[:rows, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self._key_room is None or self._value_room is None or self.keys is None:
            super().batch_select_indices(indices)
            return
        length = self.keys.shape[-2]
        self._key_room, self._value_room = self._key_room[indices], self._value_room[indices]
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]


def _with_room(filled: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """A buffer of so many rows and tokens that begins with what is filled."""
    room = filled.new_empty((rows, filled.shape[1], tokens, filled.shape[3]))
    room[: filled.shape[0], :, : filled.shape[2]] = filled
    return room


class RoomyCache(DynamicCache):
    """Use as a DynamicCache; call `make_room` before decoding, and then `copy_rows` where rows part."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = _RoomyLayer

    def make_room(self, tokens: int, most_rows: int) -> None:
        """Set room for `tokens` more tokens aside in every layer. most_rows: that there can ever be; no room is set
        aside for more."""
        for layer in self.layers:
            assert isinstance(layer, _RoomyLayer)
            layer.make_room(tokens, most_rows)

    def copy_rows(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Let rows `targets` hold what rows `sources` hold; targets may be the next rows behind the last."""
        for layer in self.layers:
            assert isinstance(layer, _RoomyLayer)
            layer.copy_rows(sources, targets)
