"""The command line, a module a command: each adds its parser, and the function that runs it."""

from __future__ import annotations

from poisonkit.commands import convert, demo, hashing, listing, run

COMMANDS = (demo, run, listing, hashing, convert)
