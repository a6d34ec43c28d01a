"""`python -m ds_serve.vllm FILE`: start a vLLM server as the job in FILE says, and keep it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ds_serve import logs
from ds_serve.vllm.guard import Guard, Job, failure_file


def main() -> int:
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    logs.apply(job.logs, f"vllm-{job.name}")
    return Guard(job, failure_file()).run()


if __name__ == "__main__":
    sys.exit(main())
