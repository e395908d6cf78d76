"""Reading a configuration: YAML and `key=value` overrides, merged by OmegaConf at this edge, become frozen dataclasses.

An unknown key is an error that names the file and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

from memr1.config import Config
from memr1.config_checks import validate
from memr1.errors import MemR1Error

ON_GPU = "on_gpu"
"""Top-level section of a YAML file with fields that are set only where the model runs on a GPU."""


def load_config(path: str | Path | None = None, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides (OmegaConf dot-list), check everything.

    Raises MemR1Error that names the file, the field and what to do.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    data: dict[str, Any] = {}
    source = "config"
    if path is not None:
        source = str(path)
        if not Path(path).is_file():
            raise MemR1Error(f"{path}: no such config file. See configs/ for examples.")
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except Exception as error:  # YAML errors come in many types; all mean that the file cannot be read
            raise MemR1Error(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise MemR1Error(f"{path}: expected a mapping of fields at the top, found {type(loaded).__name__}")
        data = typing.cast("dict[str, Any]", loaded or {})
    on_gpu = data.pop(ON_GPU, None)
    try:
        for item in overrides:
            if "=" not in item:
                raise MemR1Error(f"override {item!r}: expected key=value, for example rollout.group_size=8")
        if on_gpu is not None:
            _build(Config, on_gpu, source, f"{ON_GPU}.")  # a typing error there shows on every machine
            if _runs_on_gpu(data, overrides):
                data = OmegaConf.to_container(OmegaConf.merge(data, on_gpu))  # type: ignore[assignment]
        merged = OmegaConf.merge(OmegaConf.create(data), _override_tree(overrides, data))
        tree = typing.cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, YAMLError) as error:
        raise MemR1Error(f"{source}, with overrides {' '.join(overrides)}: {' '.join(str(error).split())}") from error
    config = _build(Config, tree, source, "")
    validate(config, source)
    return config


def with_overrides(config: Config, changes: typing.Mapping[str, Any]) -> Config:
    """The configuration with some fields changed; keys as in overrides, such as `stages.0.learning_rate`.

    Raises MemR1Error as `load_config` does.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(dataclasses.asdict(config))
    try:
        for key, value in changes.items():
            plain = value.item() if hasattr(value, "item") else value  # samplers give numpy numbers
            OmegaConf.update(tree, key, plain, force_add=True)
    except OmegaConfBaseException as error:
        raise MemR1Error(f"overrides: {key}: {' '.join(str(error).split())}") from error
    changed = _build(Config, OmegaConf.to_container(tree), "overrides", "")
    validate(changed, "overrides")
    return typing.cast(Config, changed)


def _runs_on_gpu(data: dict[str, Any], overrides: typing.Sequence[str]) -> bool:
    """Whether `model.device` resolves to a GPU on this machine."""
    from memr1.models.registry import pick_device

    device: str = (data.get("model") or {}).get("device", "auto")
    for item in overrides:
        if item.startswith("model.device="):
            device = item.split("=", 1)[1]
    # an explicit `cuda` may be meant for the workers of a cluster whose head has none
    return device.startswith("cuda") or pick_device(device).type == "cuda"


def _override_tree(overrides: typing.Sequence[str], data: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    tree = OmegaConf.create(data)
    for item in overrides:
        key, value = item.split("=", 1)
        # OmegaConf parses the value as YAML would; list elements are reached as stages.0.steps
        parsed = OmegaConf.from_dotlist([f"value={value}"]).value
        OmegaConf.update(tree, key, parsed, force_add=True)
    return tree


def build_section(cls: type, value: Any, source: str) -> Any:
    """A dataclass of settings from plain values; `MemR1Error` names `source` and the field that is wrong."""
    return _build(cls, value, source, "")


def _build(cls: type, value: Any, source: str, prefix: str) -> Any:
    """Turn a plain mapping into the dataclass `cls`, checking names and types on the way."""
    where = prefix.rstrip(".") or "the file"
    if not isinstance(value, dict):
        raise MemR1Error(f"{source}: {where}: expected a mapping of {cls.__name__} fields, found {value!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; its fields are: {', '.join(sorted(known))}"
            raise MemR1Error(f"{source}: {prefix}{key} is not a field of {cls.__name__}{hint}")
    fields = {k: _coerce(hints[k], v, source, f"{prefix}{k}") for k, v in value.items()}
    try:
        return cls(**fields)
    except MemR1Error as error:  # some settings check themselves and do not know the file
        raise MemR1Error(f"{source}: {error}") from None


def _coerce(hint: Any, value: Any, source: str, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        as_list = isinstance(value, list | tuple)  # `str | tuple[str, ...]` takes one name or a list of names
        options = tuple(o for o in options if o is not type(None))
        chosen = next((o for o in options if (typing.get_origin(o) is tuple) == as_list), options[0])
        return _coerce(chosen, value, source, name)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, source, f"{name}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise MemR1Error(f"{source}: {name}: expected a list, found {value!r}")
        args = typing.get_args(hint)
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise MemR1Error(f"{source}: {name}: expected {len(args)} values, found {len(value)}")
        item = args[0]
        return tuple(_coerce(item, v, source, f"{name}.{i}") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise MemR1Error(f"{source}: {name}: expected a mapping, found {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        try:  # YAML reads 2e-4 as text
            return float(value)
        except ValueError:
            pass
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise MemR1Error(f"{source}: {name}: expected {hint.__name__}, found {value!r}")
    return value


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; reading it back gives an equal config."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
