"""Field: a JSON value that knows where it came from, so that every complaint names the file, the place and a remedy.

The readers of this package (`jsonl.py`, `locomo.py`) look at user files through it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from memr1.errors import MemR1Error

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


@dataclass(frozen=True)
class Field:
    """A value of a parsed JSON document, with its place."""

    value: Any
    source: str
    """File, and the line or the conversation in it."""
    path: str = ""
    """Place within the source, for example `sessions[0].turns[2].text`; empty for the whole."""

    def fail(self, problem: str) -> NoReturn:
        """Raise MemR1Error: the place, then `problem`, which must end with what to do."""
        raise MemR1Error(f"{self.source}: {self.path or 'the record'} {problem}")

    def object(self, known: Collection[str] | None = None) -> dict[str, Field]:
        """The members of an object. With `known`, any other key is an error with the nearest known one."""
        if not isinstance(self.value, dict):
            self.fail(f"is {self.described()}; make it an object")
        prefix = f"{self.path}." if self.path else ""
        for key in self.value:
            if known is not None and key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"
                self.fail(f"has the unknown key {shorten(key)}; {hint}")
        return {k: Field(v, self.source, f"{prefix}{k}") for k, v in self.value.items()}

    def member(self, key: str) -> Field:
        """A member that must be there."""
        members = self.object()
        if key not in members:
            self.fail(f"has no {key}; add it")
        return members[key]

    def items(self) -> Iterator[Field]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.fail(f"is {self.described()}; make it a list")
        for index, item in enumerate(self.value):
            yield Field(item, self.source, f"{self.path}[{index}]")

    def text(self, *, allow_empty: bool = False) -> str:
        """A string that can be written as UTF-8."""
        if not isinstance(self.value, str):
            self.fail(f"is {self.described()}; make it a string")
        if not self.value.strip() and not allow_empty:
            self.fail("is empty; give it some text")
        try:
            self.value.encode("utf-8")
        except UnicodeEncodeError:
            self.fail("holds half of a surrogate pair, which is not text; repair its encoding")
        return self.value

    def integer(self) -> int:
        """A whole number."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.fail(f"is {self.described()}; make it a whole number")
        return self.value

    def boolean(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            self.fail(f"is {self.described()}; make it true or false")
        return self.value

    def answer(self, notes: list[str]) -> str:
        """A gold answer: a string, or a number, which is cast to text and said so in `notes`."""
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            notes.append("answer was a number")
            return str(self.value)
        return self.text()

    def described(self) -> str:
        """The kind of the value and its beginning, for messages."""
        if self.value is None:
            return "null"
        return f"{_KINDS[type(self.value)]} ({shorten(self.value)})"


def shorten(value: Any) -> str:
    """A value's beginning as JSON, in ASCII, so that any terminal can print it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_json(text: str, source: str) -> Any:
    """Parse JSON strictly: a repeated key, NaN or Infinity is an error, as is anything the parser cannot take."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except MemR1Error as error:
        raise MemR1Error(f"{source}: {error}") from None
    except json.JSONDecodeError as error:
        raise MemR1Error(
            f"{source}: not valid JSON at character {error.pos + 1} ({error.msg}); correct it there"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested thousands deep
        raise MemR1Error(f"{source}: JSON beyond the parser's limits ({error}); simplify it") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise MemR1Error(f"the key {shorten(key)} occurs twice in one object; remove one")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise MemR1Error(f"{name} is not JSON; use a number or null")


def read_text(path: str | Path, what: str) -> str:
    """The text of a UTF-8 file. Raises MemR1Error where it is missing, no file, unreadable or not UTF-8."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MemR1Error(f"{path}: no such file; set data.path to {what}") from None
    except IsADirectoryError:
        raise MemR1Error(f"{path}: is a directory; set data.path to {what}") from None
    except UnicodeDecodeError as error:
        raise MemR1Error(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise MemR1Error(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
