"""Frozen dataclasses of plain values as configuration: to JSON and back, and from the command line.

Attacks, defenses, recipes and models are such dataclasses, so their ``repr`` is the configuration of
a run, and their fields are its options: ``--recipe.schedule.peak 0.4`` sets the field ``peak`` of the
field ``schedule`` of the recipe.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from poisonkit.errors import fail, require

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """A configuration as JSON values; a dataclass becomes {"class": its name, field: value, ...}."""
    if is_dataclass(config) and not isinstance(config, type):
        values = {field.name: to_dict(getattr(config, field.name)) for field in fields(config)}
        return {"class": type(config).__name__, **values}
    if isinstance(config, tuple):
        return [to_dict(value) for value in config]
    require(config is None or isinstance(config, int | float | str), "configuration", "of plain values", config)
    return config


def from_dict(kind: type[T], values: Any) -> T:
    """The configuration of type ``kind`` that :func:`to_dict` wrote. Raises ArgumentError where it does not fit."""
    return _from_json(kind, values, kind.__name__)  # type: ignore[no-any-return]


def leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted option, value) of every field that can be set."""
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}.{field.name}"
        if is_dataclass(value):
            yield name, type(value).__name__
            yield from leaves(value, name)
        else:
            yield name, value


def with_option(config: T, path: str, text: str, prefix: str) -> T:
    """``config`` with the field at dotted ``path`` (below ``prefix``) set from the command line's ``text``."""
    name, _, rest = path.partition(".")
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    option = f"--{prefix}.{name}"
    if name not in known:
        choices = ", ".join(f"--{prefix}.{field}" for field in sorted(known)) or "nothing: it has no options"
        fail(f"an option below --{prefix}", f"one of {choices}", f"{option}", f"{type(config).__name__} has no {name}")
    hint = get_type_hints(type(config))[name]
    if rest:
        inner = getattr(config, name)
        require(is_dataclass(inner), option, "set as a whole", f"{option}.{rest}", f"it is {inner!r}")
        value = with_option(inner, rest, text, f"{prefix}.{name}")
    else:
        value = _from_text(hint, text, option)
    return replace(config, **{name: value})  # type: ignore[type-var]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _from_json(hint: Any, value: Any, name: str) -> Any:
    if isinstance(value, dict):
        kinds: dict[str, Any] = {kind.__name__: kind for kind in _alternatives(hint) if _is_config(kind)}
        kind = kinds.get(value.get("class", ""))
        if kind is None:
            fail(name, f"one of {', '.join(kinds)}", value.get("class"))
        hints, given = get_type_hints(kind), {k: v for k, v in value.items() if k != "class"}
        names = [field.name for field in fields(kind)]
        needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        require(
            set(names) >= given.keys() >= needed,
            name,
            f"a {kind.__name__} with fields {', '.join(names)}",
            ", ".join(given),
        )
        return kind(**{k: _from_json(hints[k], v, f"{name}.{k}") for k, v in given.items()})
    for kind in _alternatives(hint):
        if get_origin(kind) is tuple and isinstance(value, list):
            return tuple(_from_json(get_args(kind)[0], item, name) for item in value)
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:  # exact, since True is an int too
            return value
    return fail(name, f"of type {_describe(hint)}", repr(value))


def _from_text(hint: Any, text: str, option: str) -> Any:
    for kind in _alternatives(hint):
        try:
            return _parse(kind, text)
        except ValueError:
            continue
    return fail(option, _describe(hint), repr(text))


def _parse(kind: Any, text: str) -> Any:
    """``text`` as a ``kind``; ValueError where it is none."""
    if _is_config(kind):
        if text.lower() != kind.__name__.lower():
            raise ValueError(text)
        return kind()
    if kind is type(None):
        return _word(text, {"none": None})
    if kind is bool:
        return _word(text, {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False})
    if get_origin(kind) is Literal:
        return _word(text, {str(choice): choice for choice in get_args(kind)})
    if get_origin(kind) is tuple:
        items, kinds = text.split(","), get_args(kind)
        kinds = kinds[:1] * len(items) if kinds[-1] is Ellipsis else kinds
        if len(items) != len(kinds):
            raise ValueError(text)
        return tuple(_parse(inner, item) for inner, item in zip(kinds, items, strict=True))
    return kind(text)


def _word(text: str, words: dict[str, Any]) -> Any:
    if text not in words and text.lower() not in words:
        raise ValueError(text)
    return words.get(text, words.get(text.lower()))


def _describe(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "none"}
    kinds = []
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            kinds.append(", ".join(map(str, get_args(kind))))
        elif get_origin(kind) is tuple:
            kinds.append("numbers separated by commas")
        else:
            kinds.append(names.get(kind) or kind.__name__)
    return " or ".join(kinds)
