"""`ds-models`: models from anywhere into the cache or a repository, and what is there."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ds_engines.errors import ServeError
from ds_serve.catalogue import commands

SOURCES = """\
SOURCE is a name of the catalogue, an id of the Hugging Face hub (org/name or org/name@revision),
oci://host/repository:tag, any address that fsspec reads (s3://, gs://, az://, https://), a folder
or a file."""


def main(argv: Sequence[str] | None = None, *, prog: str = "ds-models") -> int:
    """Run the command in `argv`; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    own = words.index("--") if "--" in words else len(words)
    arguments = _parser(prog).parse_args(words[:own])
    arguments.flags = words[own + 1 :]
    try:
        status: int = arguments.run(arguments)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what had come is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as with `ds-models list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Models in and out.", epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made = parser.add_subparsers(dest="command", required=True)
    _pull(made.add_parser("pull", aliases=["fetch"], help="get models, and print where they are"))
    _list(made.add_parser("list", help="what is in the cache, the catalogue or a repository"))
    _serve(made.add_parser("serve", help="pull models and serve them; ds-serve's flags after --"))
    _verify(made.add_parser("verify", help="read the files again and compare them"))
    _promote(made.add_parser("promote", help="have a version of a repository's model served"))
    _roll_back(made.add_parser("rollback", help="serve again what was before the last promotion"))
    _remove(made.add_parser("remove", help="remove a model from the cache, or a version"))
    _prune(made.add_parser("prune", help="remove what was not used for longest from the cache"))
    return parser


def _pull(parser: argparse.ArgumentParser) -> None:
    _sources(parser)
    parser.add_argument(
        "--to", metavar="REPOSITORY/NAME", help="make a new version of this model in a repository"
    )
    parser.add_argument("--version", type=_version, help="its number (default: the next)")
    parser.add_argument("--promote", action="store_true", help="and have it served")
    parser.add_argument(
        "--sha256", default="", metavar="HEX", help="what the only file of the source must have"
    )
    _server(parser)
    parser.set_defaults(run=commands.pull)


def _sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SOURCE")
    for name, help_ in (("include", "only such files"), ("exclude", "no such files")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="PATTERN",
            help=f"{help_}, by path or name, such as '*.gguf'; may be repeated",
        )  # fmt: skip


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", nargs="?", help="a repository; without one the cache")
    parser.add_argument("--catalogue", action="store_true", help="every model of the catalogue")
    parser.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    parser.set_defaults(run=commands.list_)


def _serve(parser: argparse.ArgumentParser) -> None:
    _sources(parser)
    parser.set_defaults(run=commands.serve)


def _verify(parser: argparse.ArgumentParser) -> None:
    _model(
        parser, "a model in the cache, or the folder REPOSITORY/NAME; none: the whole cache", "*"
    )
    parser.set_defaults(run=commands.verify)


def _promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="REPOSITORY/NAME")
    parser.add_argument("version", type=_version)
    _server(parser)
    parser.set_defaults(run=commands.promote)


def _roll_back(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="REPOSITORY/NAME")
    _server(parser)
    parser.set_defaults(run=commands.roll_back)


def _remove(parser: argparse.ArgumentParser) -> None:
    _model(parser, "a model in the cache, or the folder REPOSITORY/NAME", None)
    parser.add_argument("--force", action="store_true", help="also what is served or in use")
    parser.set_defaults(run=commands.remove)


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", metavar="SIZE",
        help="what the cache may have, such as 20GB (default: $DS_SERVE_CACHE_LIMIT)",
    )  # fmt: skip
    parser.set_defaults(run=commands.prune_)


def _model(parser: argparse.ArgumentParser, text: str, nargs: str | None) -> None:
    parser.add_argument("model", nargs="?" if nargs else None, metavar="MODEL", help=text)
    parser.add_argument(
        "version", nargs="?", type=_version, help="of a repository's model; none: all"
    )


def _server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server", metavar="URL",
        help="a running server to tell, and to wait for; $DS_SERVE_KEY is its administrator's key",
    )  # fmt: skip


def _version(text: str) -> int:
    if not text.isdecimal() or text.startswith("0"):
        raise argparse.ArgumentTypeError(f"{text!r} is no version: they are 1, 2, 3 ...")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
