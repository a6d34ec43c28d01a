"""python -m ds_serve.security NAME: a new key, and what to write into the file of keys for it."""

from __future__ import annotations

import argparse

from ds_serve.security.keys import entry, make


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ds_serve.security", description=__doc__)
    parser.add_argument("name", help="whose key it is")
    name = parser.parse_args().name
    secret, digest = make()
    print(f"# The key, which is shown only now: {secret}\n{entry(name, digest)}", end="")


if __name__ == "__main__":
    main()
