"""The command line. Options of attacks, defenses, recipes and models are the fields of their dataclasses."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence

import poisonkit
from poisonkit.commands import COMMANDS
from poisonkit.commands.parsing import Parser
from poisonkit.engine import environment
from poisonkit.errors import PoisonkitError

# No more room: on the disk, in the quota, in a file; or nothing may be written at all
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit status: 0; 2 where an argument or a file is wrong; 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments, options = _parser().parse_known_args(argv)
        arguments.shown = shlex.join(["poisonkit", *argv])
        arguments.command(arguments, options)
    except PoisonkitError as error:
        print(f"poisonkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("poisonkit: interrupted; a run takes up where it stopped, unless told to --overwrite", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or "a file"
        print(f"poisonkit: {where} must be writable, got {error.strerror}; free space, start again", file=sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    parser = Parser(prog="poisonkit", description=poisonkit.__doc__)
    parser.add_argument("--version", action="version", version=f"poisonkit {environment()['poisonkit']}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
