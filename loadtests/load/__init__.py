"""Load tests: users that ask a server for what a scenario says, and whether it held.

`python -m loadtests.load SCENARIO` runs one. Modules that import locust patch the standard library
for gevent, so they are imported by the process that runs a load test and by no other.
"""
