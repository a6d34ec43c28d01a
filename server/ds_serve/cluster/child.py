"""`ds-serve` as a replica's child: it ends with the replica, however that ends."""

from __future__ import annotations

import sys

from ds_serve import cli
from ds_serve.process_guard import die_with_parent


def main() -> int:
    die_with_parent(int(sys.argv[1]))
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
