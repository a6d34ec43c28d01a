"""Imported before all else by a process that runs a load test: gevent under everything.

locust patches the standard library when it is imported; gRPC has to be told by itself.
"""

from __future__ import annotations

import locust
from grpc.experimental.gevent import init_gevent

init_gevent()

LOCUST_VERSION = locust.__version__
