"""Every command with its usage, as ``dataflex-cli help COMMAND`` prints it."""

from __future__ import annotations

from dataflex.cli.commands import BUILT_IN, all_commands

from generated.markdown import prose, table

TEXT = """# Commands

`dataflex-cli COMMAND --help` prints the same. [The command line](../cli.md) explains them at length,
[errors](errors.md) has the exit codes. Commands that a package or plugin adds say so.

"""


def page() -> str:
    """Returns the page."""
    commands = all_commands()
    rows = [(f"[`{name}`](#{name})", command.summary) for name, command in commands.items()]
    text = TEXT + table(("command", "what it does"), rows)
    for name, command in commands.items():
        added = "" if name in BUILT_IN else "Added by an installed package.\n\n"
        summary = f"{command.summary[:1].upper()}{command.summary[1:]}."
        details = f"{prose(command.details)}\n\n" if command.details else ""
        text += f"\n## {name}\n\n{added}{prose(summary)}\n\n```text\n{command.usage}\n```\n\n{details}"
    return text
