"""What every command parses alike: one-line errors, dotted options, devices."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, TypeAlias

import torch

from poisonkit.errors import ArgumentError, fail, require


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and come as an ArgumentError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}; see {self.prog} --help")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def no_options(options: list[str]) -> None:
    require(not options, "arguments", "those that --help lists", " ".join(options))


def pairs(options: list[str]) -> list[tuple[str, str]]:
    """``--a.b value`` and ``--a.b=value`` as pairs, outer fields first so that inner ones apply to them."""
    pairs, rest = [], list(options)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not equals:
            require(bool(rest) and option.startswith("--"), "options", "of the form --option value", option)
            value = rest.pop(0)
        pairs.append((option, value))
    return sorted(pairs, key=lambda pair: pair[0].count("."))


def device_named(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        fail("--device", "cpu, cuda or cuda:N", name)
    require(device.type in ("cpu", "cuda"), "--device", "cpu, cuda or cuda:N", name)
    return device
