"""The entry of ``dataflex-cli``: finds the command, and turns errors into a line on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from dataflex.cli.commands import BUILT_IN, LLAMAFACTORY, all_commands, command, is_llamafactorys
from dataflex.core.errors import ComponentError, DataflexError, StoppedError
from dataflex.utils.secret_values import scrubbed

HELP = ("-h", "--help")


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Returns the exit code: 0; 1 where a run failed; 2 where nothing was started; 130 after Ctrl-C; 143 after SIGTERM.

    Errors that dataflex does not know surface with their traceback, which is what a report of them needs.
    """
    try:
        return _dispatch(list(argv))
    except StoppedError as error:
        sys.stderr.write(scrubbed(f"{error}\n"))
        return error.exit_code
    except DataflexError as error:
        if isinstance(error, ComponentError) and error.__cause__ is not None:
            # the author of the component needs to see where
            sys.stderr.write(scrubbed("".join(traceback.format_exception(error.__cause__))))
        sys.stderr.write(scrubbed(f"error: {error}\n"))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except SystemExit as error:
        if not argv or argv[0] not in BUILT_IN:
            raise  # the command of a plugin ends as it likes
        # None of dataflex's own does this: what is called from here would end a run as if it were done.
        place = traceback.extract_tb(error.__traceback__)[-1]
        sys.stderr.write(
            scrubbed(
                f"error: something ended the process with SystemExit: {error} at {place.filename}, line {place.lineno} "
                "-> raise an ordinary exception there\n"
            )
        )
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv:
        sys.stderr.write(_overview())
        return 2
    name, rest = argv[0], argv[1:]
    if name in (*HELP, "help"):
        sys.stdout.write(command(rest[0]).help() if rest else _overview())
        return 0
    if name in ("-V", "--version"):
        name = "version"
    found = command(name)
    if not is_llamafactorys(name) and any(argument in HELP for argument in rest):
        sys.stdout.write(found.help())
        return 0
    return found.run(rest)


def _overview() -> str:
    commands = all_commands()
    width = max(map(len, [*commands, "help"]))
    lines = [f"  {name:<{width}}  {found.summary}" for name, found in commands.items()]
    lines.append(f"  {'help':<{width}}  this page, or help on a command")
    theirs = f"\nLLaMA-Factory's own, as llamafactory-cli has them: {', '.join(LLAMAFACTORY)}\n"
    head = "Dynamic training for LLMs on top of LLaMA-Factory.\n\nusage: dataflex-cli COMMAND ...\n\n"
    return head + "\n".join(lines) + "\n" + theirs + "\ndataflex-cli COMMAND --help says more.\n"
