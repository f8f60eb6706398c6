"""The command line, a module a command: each adds its parser, and the function that runs it."""

from __future__ import annotations

from poisonkit.commands import convert, craft, demo, dpa, gallery, hashing, listing, reproduce, run

COMMANDS = (demo, run, dpa, reproduce, craft, gallery, listing, hashing, convert)
