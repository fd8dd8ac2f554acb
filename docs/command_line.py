"""Write the sections of ``command_line.md`` anew, from the programs' own parsers: python docs/command_line.py"""

from __future__ import annotations

import argparse
from pathlib import Path

from les_md.cli import export_parser, main_parser
from les_md.training.command import argument_parser
from les_md.training.recipes import argument_parser as recipes_parser

PAGE = Path(__file__).with_suffix(".md")


def argument(action: argparse.Action) -> str:
    """How an argument is written: ``--cutoff R``, ``{float32,float64}``."""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices is not None:
        value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    if action.nargs == "+":
        value = f"{value} [{value} ...]"
    if not action.option_strings:
        return value
    takes_value = action.nargs != 0
    return ", ".join(action.option_strings) + (f" {value}" if takes_value else "")


def table(parser: argparse.ArgumentParser) -> str:
    """One row for each argument; those of ``--help`` and of commands within are left out."""
    rows = []
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        text = (action.help or "").replace("|", "\\|")
        if action.required and action.option_strings:
            text += " (required)"
        rows.append(f"| `{argument(action)}` | {text} |\n")
    return "\n| | |\n| --- | --- |\n" + "".join(rows) if rows else ""


def section(parser: argparse.ArgumentParser) -> str:
    """A program, and a section for each of its commands."""
    text = f"\n## {parser.prog}\n\n{parser.description}\n{table(parser)}"
    for group in parser._actions:
        if isinstance(group, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in group._choices_actions}
            for name, command in group.choices.items():
                sentence = helps[name][0].upper() + helps[name][1:]
                text += f"\n### {parser.prog} {name}\n\n{sentence}.\n{table(command)}"
    return text


def page() -> str:
    """The whole page: what stands before its first section, and a section for each program."""
    parsers = (export_parser(), main_parser(), argument_parser(), recipes_parser())
    head = PAGE.read_text(encoding="utf-8").split("\n## ")[0]
    return head + "".join(section(parser) for parser in parsers)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
