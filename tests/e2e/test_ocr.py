"""The example of an ensemble with Python steps: pictures of text, read by Triton's own clients."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image, ImageDraw, ImageFont
from serving import Server
from tritonclient.utils import InferenceServerException

FETCH = Path(__file__).parents[2] / "docs/examples/ocr/fetch.py"
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
WORDS = ("invoice", "total", "amount", "order", "number", "customer", "receipt", "delivery")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ocr") / "models"
    subprocess.run([sys.executable, str(FETCH), str(folder)], check=True)
    with Server("--model-repository", folder, "--gateways", "2") as server:
        yield server


def picture(lines: list[str], upside_down: set[int]) -> np.ndarray:
    """One line below the other, black on white: uint8 [height, 640, 3]."""
    page = Image.new("RGB", (640, 60 * len(lines) + 40), "white")
    for number, line in enumerate(lines):
        strip = Image.new("RGB", (600, 50), "white")
        ImageDraw.Draw(strip).text((10, 5), line, fill="black", font=ImageFont.load_default(30))
        page.paste(strip.rotate(180 if number in upside_down else 0), (20, 20 + 60 * number))
    return np.asarray(page)


def read(server: Server, protocol: str, page: np.ndarray):
    module = CLIENTS[protocol]
    given = module.InferInput("image", page.shape, "UINT8")
    given.set_data_from_numpy(page)
    address = server.http_address if protocol == "http" else server.grpc
    with module.InferenceServerClient(address) as client:
        return client.infer("ocr", [given])


def texts(answer) -> list[str]:
    """Without blanks, some of which the network leaves out."""
    return [text.decode().replace(" ", "") for text in answer.as_numpy("text")]


@pytest.mark.parametrize("protocol", CLIENTS)
def test_page_is_read_with_lines_upside_down(server, protocol):
    lines = ["Invoice 2026-117", "Total amount 1,249.50", "Customer Margaret Hill", "by Friday"]
    answer = read(server, protocol, picture(lines, {2}))
    assert texts(answer) == [line.replace(" ", "") for line in lines]
    assert answer.as_numpy("score").min() > 0.9
    boxes = answer.as_numpy("box")
    assert [round((box[1] + box[3]) / 2 / 60 - 0.75) for box in boxes] == [0, 1, 2, 3]


@pytest.mark.parametrize("protocol", CLIENTS)
def test_page_without_text(server, protocol):
    answer = read(server, protocol, picture(["", ""], set()))
    assert texts(answer) == []
    assert answer.as_numpy("box").shape == (0, 4)


def test_picture_without_pixels_is_refused(server):
    with pytest.raises(InferenceServerException, match="the image has no pixels") as refused:
        read(server, "http", np.zeros((0, 0, 3), np.uint8))
    assert refused.value.status() == "400"


def test_many_pages_at_once(server):
    chance = random.Random(0)
    pages = [
        [f"{chance.choice(WORDS)} {chance.randint(1000, 99999)}" for _ in range(1 + number % 4)]
        for number in range(12)
    ]

    def is_right(number: int) -> bool:
        protocol = "http" if number % 2 else "grpc"
        answer = read(server, protocol, picture(pages[number], {number % 3}))
        return texts(answer) == [line.replace(" ", "") for line in pages[number]]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(is_right, range(12))) == [True] * 12
