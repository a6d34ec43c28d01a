"""Whether the server in this container is ready: exit status 0, or 1 and what it says.

$DS_HEALTH_URL is what to ask, http://127.0.0.1:8000/health/ready by default.
"""

from __future__ import annotations

import os
import ssl
import sys
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

URL = "http://127.0.0.1:8000/health/ready"
SECONDS = 4.0


def main() -> int:
    url = os.environ.get("DS_HEALTH_URL") or URL
    # The certificate is for the name that clients know, and this is the loopback interface.
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    # Never by a proxy that the environment names.
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=anybody))
    try:
        with opener.open(url, timeout=SECONDS) as answer:
            print(answer.status, answer.read(1000).decode(errors="replace"))
            return 0
    except HTTPError as error:
        print(error.code, error.read(1000).decode(errors="replace"))
    except (OSError, ValueError) as error:
        print(f"{url}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
