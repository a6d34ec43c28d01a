"""`python -m ds_serve.text`: start a text worker."""

import sys

from ds_serve.text.worker import main

if __name__ == "__main__":
    sys.exit(main())
