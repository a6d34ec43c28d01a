"""`list` and `fetch NAME ...`: the catalogue from a command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ds_engines.errors import ServeError
from ds_serve.catalogue.entries import entries
from ds_serve.catalogue.fetch import fetch, fetched
from ds_serve.catalogue.progress import MB, progress_on


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m ds_serve.catalogue") -> int:
    """Run the command in `argv`; the exit status."""
    arguments = _parser(prog).parse_args(argv)
    try:
        if arguments.command == "list":
            _list()
        else:
            _fetch_all(arguments.name)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what had come whole is kept", file=sys.stderr)
        return 130
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Models that a name is enough for.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every model of the catalogue, and which are fetched")
    fetching = commands.add_parser("fetch", help="download models and print where they are")
    fetching.add_argument("name", nargs="+")
    return parser


def _list() -> None:
    for entry in entries():
        print(f"{entry.name}\n    {entry.description}")
        path = fetched(entry)
        where = f"fetched: {path}" if path else f"{entry.size / MB:,.1f} MB to download"
        print(f"    {entry.task}, {entry.licence}, {where}")


def _fetch_all(names: Sequence[str]) -> None:
    for name in names:
        with progress_on(sys.stderr) as progress:
            path = fetch(name, progress=progress)
        print(path)
