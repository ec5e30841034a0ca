"""Command lines: an error is one line, with the nearest option for a misspelt one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from common.errors import UserError, did_you_mean


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `UserError` instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse says.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; {self.prog} --help lists the options")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but nothing unknown is handed back.

        Raises:
            UserError: an option that does not exist, with those like it, or a word too many.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if not unknown:
            return found, unknown
        words = [word for word in unknown if word.startswith("-")] or unknown
        name = words[0].partition("=")[0]
        if not name.startswith("-"):
            raise UserError(f"unexpected word {name!r}; {self.prog} --help lists the options")
        raise UserError(f"unknown option {name}; {did_you_mean(name, list(_options(self)))}")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Those of a parser and of its subcommands."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)


class Adding(argparse.Action):
    """Values of an option that is given several times add up; the default stands only where it is not given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the values to those given before."""
        given = getattr(namespace, self.dest)
        before = [] if given is self.default or given is None else given
        setattr(namespace, self.dest, [*before, *(values if isinstance(values, list) else [values])])
