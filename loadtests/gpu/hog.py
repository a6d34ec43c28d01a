"""Takes a GPU's memory until it is ended: python -m loadtests.gpu.hog NUMBER LEAVE_MB."""

from __future__ import annotations

import sys

MB = 1_000_000
PIECE = 64 * MB


def main() -> None:
    from cuda.bindings import runtime

    from ds_engines.cuda.calls import call
    from ds_engines.cuda.memory import DeviceMemory
    from ds_engines.errors import OutOfMemory

    number, leave = int(sys.argv[1]), int(sys.argv[2]) * MB
    call(runtime.cudaSetDevice, number)
    held = []
    while True:
        free, _ = call(runtime.cudaMemGetInfo)
        size = int(free) - leave
        if size < PIECE:
            break
        try:
            held.append(DeviceMemory(size if size < 16 * PIECE else size // 2))
        except OutOfMemory:
            break
    print(round(free / MB), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
