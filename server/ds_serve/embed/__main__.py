"""`python -m ds_serve.embed`: start an encoder's worker."""

import sys

from ds_serve.embed.worker import main

if __name__ == "__main__":
    sys.exit(main())
