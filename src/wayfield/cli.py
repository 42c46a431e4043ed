"""The entrance of the command line, `wayfield ...`; see `wayfield.doors` for what lies behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from wayfield.core.errors import MissingExtraError

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 3 claim not held, 2 wrong usage, 1 anything else.

    args: without the program's name; None for those of the process.
    """
    from wayfield.doors import console

    try:
        from wayfield.doors.commands import parse

        command = parse(list(sys.argv[1:] if args is None else args))
        return command.run()
    except SystemExit as done:  # the parser has said what there is to say
        return done.code if isinstance(done.code, int) else console.FAILED
    except console.UsageError as wrong:
        console.complain(wrong.error)
        return console.USAGE
    except BrokenPipeError:  # the reader of our stdout has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return console.FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return console.FAILED
    except ImportError as error:
        console.complain(_named(error))
    except Exception as error:
        console.complain(error)
    return console.FAILED


def _named(error: ImportError) -> ImportError:
    """The error for a missing package of ours or of the command line's."""
    if isinstance(error, MissingExtraError) or (error.name or "").split(".")[0] not in ("rich", "tyro"):
        return error
    remedy = 'Run: pip install "wayfield[cli]".'
    return MissingExtraError(
        error.name or "package", got="not installed", expected="an importable package", remedy=remedy
    )


if __name__ == "__main__":
    sys.exit(main())
