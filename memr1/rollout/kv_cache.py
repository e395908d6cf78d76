"""A key-value cache that leaves room for the tokens to come.

transformers' DynamicCache concatenates at every decoded token and so copies the whole cache each time; with dozens of
rows that costs as much as the model itself. Here decoding writes into room set aside once.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class _RoomyLayer(DynamicLayer):
    """A DynamicLayer whose tensors are views of the front of larger buffers once `make_room` was called."""

    _key_room: torch.Tensor | None = None
    _value_room: torch.Tensor | None = None

    def make_room(self, tokens: int) -> None:
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        length = keys.shape[-2]
        self._key_room = keys.new_empty((*keys.shape[:2], length + tokens, keys.shape[3]))
        self._value_room = values.new_empty((*values.shape[:2], length + tokens, values.shape[3]))
        self._key_room[:, :, :length] = keys
        self._value_room[:, :, :length] = values
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]

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
        room_keys[:, :, start:end] = key_states
        room_values[:, :, start:end] = value_states
        self.keys, self.values = room_keys[:, :, :end], room_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self._key_room is None or self._value_room is None or self.keys is None:
            super().batch_select_indices(indices)
            return
        length = self.keys.shape[-2]
        self._key_room, self._value_room = self._key_room[indices], self._value_room[indices]
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]


class RoomyCache(DynamicCache):
    """Use as a DynamicCache; call `make_room(n)` before decoding n tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = _RoomyLayer

    def make_room(self, tokens: int) -> None:
        """Set room for `tokens` more tokens aside in every layer."""
        for layer in self.layers:
            assert isinstance(layer, _RoomyLayer)
            layer.make_room(tokens)
