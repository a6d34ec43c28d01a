"""The example of optical inspection: a photograph to boxes, by tiles that overlap, with a detector
that is exact, so that only the way there and back can be wrong.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import square_detector
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from serving import Server
from tritonclient.utils import InferenceServerException

EXAMPLE = Path(__file__).parents[2] / "docs/examples/inspection"
WIDTH, HEIGHT = 2560, 1920
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("inspection") / "models"
    shutil.copytree(EXAMPLE / "models", folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    versions = folder / "inspection_detect"
    for trained in versions.glob("[0-9]*"):
        shutil.rmtree(trained)
    square_detector.saved(versions / "1/model.onnx")
    with Server("--model-repository", folder) as server:
        yield server


def jpeg(picture: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=95, subsampling=0)
    return buffer.getvalue()


def board(rectangles: list[tuple[int, ...]], width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Grey, with rectangles of left, top, right, bottom and class."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for left, top, right, bottom, kind in rectangles:
        picture[top:bottom, left:right] = COLOURS[kind]
    return jpeg(picture)


def ask(server: Server, model: str, data: bytes, protocol: str = "grpc"):
    module = CLIENTS[protocol]
    given = module.InferInput("jpeg", [1], "BYTES")
    given.set_data_from_numpy(np.array([data], np.object_))
    address = server.http_address if protocol == "http" else server.grpc
    with module.InferenceServerClient(address) as client:
        return client.infer(model, [given])


def found(server: Server, data: bytes, protocol: str = "grpc") -> list[tuple[int, ...]]:
    """Left, top, right, bottom and class of each, in the picture's order."""
    answer = ask(server, "inspection", data, protocol)
    boxes, scores, classes = (answer.as_numpy(name) for name in ("boxes", "scores", "classes"))
    assert (np.diff(scores) <= 0).all()
    assert ((boxes % 1) == 0).all()
    rows = np.concatenate([boxes, classes[:, None]], 1)
    return sorted(tuple(map(int, row)) for row in rows)


def test_tiles_are_the_picture_and_share_what_is_asked(server: Server) -> None:
    shades = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH) // 4096 % 256
    data = jpeg(np.repeat(shades.astype(np.uint8)[..., None], 3, 2))
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    answer = ask(server, "inspection_tiles", data)
    tiles, windows = answer.as_numpy("tile"), answer.as_numpy("window")
    assert answer.as_numpy("size").tolist() == [WIDTH, HEIGHT]
    assert tiles.shape == (20, 3, 640, 640)
    for tile, (left, top, right, bottom) in zip(tiles, windows, strict=True):
        np.testing.assert_array_equal(tile, picture[top:bottom, left:right].transpose(2, 0, 1))
    for axis, length in ((0, WIDTH), (1, HEIGHT)):
        begins = np.unique(windows[:, axis])
        assert (begins[0], begins[-1]) == (0, length - 640)
        assert np.diff(begins).max() <= 640 - 96


@pytest.mark.parametrize("protocol", CLIENTS)
def test_each_defect_is_found_once_wherever_tiles_end(server: Server, protocol: str) -> None:
    windows = ask(server, "inspection_tiles", board([])).as_numpy("window")
    right, down = int(windows[1, 0]), int(windows[5, 1])  # where the next tiles begin
    there = [
        (200, 200, 230, 240, 0),  # within one tile
        (right - 40, 60, right + 40, 84, 1),  # across the beginning of the second
        (630, 250, 650, 330, 2),  # across the end of the first
        (60, down - 30, 150, down + 40, 0),  # the same of the tile below
        (right + 10, down + 10, right + 80, down + 90, 1),  # in four tiles
        (0, 1000, 40, 1030, 2),  # at the picture's own edges, and in its corners
        (WIDTH - 50, HEIGHT - 20, WIDTH, HEIGHT, 0),
        (WIDTH - 30, 0, WIDTH, 90, 1),
    ]
    assert found(server, board(there), protocol) == sorted(there)


def test_every_place_along_the_seams_is_somebodys(server: Server) -> None:
    """Defects in steps that share no factor with the tiles'."""
    for number in range(2):
        there = [
            (left, top, left + 64, top + 48, (left + top) % 3)
            for left in range(11 + 120 * number, WIDTH - 64, 241)
            for top in range(7 + 111 * number, HEIGHT - 48, 223)
        ]
        assert found(server, board(there)) == sorted(there)


def test_clean_board_has_no_boxes(server: Server) -> None:
    answer = ask(server, "inspection", board([]))
    shapes = [answer.as_numpy(name).shape for name in ("boxes", "scores", "classes")]
    assert shapes == [(0, 4), (0,), (0,)]


def test_picture_smaller_than_a_tile(server: Server) -> None:
    there = [(20, 10, 60, 40, 2)]
    assert found(server, board(there, 120, 50)) == there


def test_grey_picture_is_taken(server: Server) -> None:
    assert found(server, jpeg(np.full((700, 900), 90, np.uint8))) == []


BROKEN = {
    "nothing": (b"", "the picture has no bytes"),
    "text": (b"hello, world", "the picture is no JPEG: it begins with 68656c6c"),
    "png": (jpeg(np.zeros((8, 8, 3), np.uint8), "PNG"), "no JPEG: it begins with 89504e47"),
    "cut off": (board([(9, 9, 40, 40, 0)], 800, 600)[:2000], "the JPEG is broken: .*truncated"),
    "large": (board([], 6000, 4000), "6000 x 4000 pixels is too large: at most 32 tiles of 640"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("protocol", CLIENTS)
def test_what_is_no_picture_is_refused_with_the_reason(
    server: Server, protocol: str, what: str
) -> None:
    data, message = BROKEN[what]
    with pytest.raises(InferenceServerException, match=message) as refused:
        ask(server, "inspection", data, protocol)
    status = "400" if protocol == "http" else "StatusCode.INVALID_ARGUMENT"
    assert refused.value.status() == status


def test_client_of_the_example(server: Server, tmp_path: Path) -> None:
    (tmp_path / "board.jpg").write_bytes(board([(196, 204, 228, 236, 0), (908, 28, 940, 60, 2)]))
    command = [sys.executable, str(EXAMPLE / "client.py"), "board.jpg", server.grpc]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == [
        "missing component  1.00  [196, 204, 228, 236]",
        "solder bridge      1.00  [908, 28, 940, 60]",
    ]
