"""The command line, a module a command: each adds its parser, and the function that runs it."""

from __future__ import annotations

from poisonkit.commands import (
    backdoors,
    compare,
    condense,
    convert,
    craft,
    demo,
    dpa,
    gallery,
    hashing,
    listing,
    matrix,
    pretrain,
    repair,
    reproduce,
    run,
)

COMMANDS = (
    demo,
    run,
    compare,
    dpa,
    repair,
    condense,
    reproduce,
    backdoors,
    matrix,
    pretrain,
    craft,
    gallery,
    listing,
    hashing,
    convert,
)
