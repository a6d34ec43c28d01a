"""The lines of text that the detection has found, cut out and scaled for the other networks."""

import numpy as np
import triton_python_backend_utils as pb_utils

HEIGHT, HEAD, SHORTEST = 48, 192, 320
"""Pixels: the height of a line, the width that shows how it is turned, the least width to read."""

INK, SURE = 0.3, 0.5
"""From this probability on a pixel belongs to text, and with this mean a whole box."""

GROWTH = 1.6
"""The detection marks the middle of a line; by this its box grows, as DB's unclip ratio."""

SMALLEST = 3
MOST = 64


def runs(row):
    """Begin and end of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    return edges.reshape(-1, 2).tolist()


def regions(ink):
    """[left, top, right, bottom] of each connected region."""
    parent, boxes, before = [], [], []

    def root(label):
        while parent[label] != label:
            label = parent[label]
        return label

    for y, row in enumerate(ink):
        now = []
        for left, right in runs(row):
            label = len(parent)
            parent.append(label)
            boxes.append([left, y, right, y + 1])
            for other_left, other_right, other in before:
                if other_left < right and left < other_right:
                    parent[root(other)] = label
            now.append((left, right, label))
        before = now
    found = {}
    for label, (left, top, right, bottom) in enumerate(boxes):
        box = found.setdefault(root(label), [left, top, right, bottom])
        box[:] = min(box[0], left), min(box[1], top), max(box[2], right), max(box[3], bottom)
    return list(found.values())


def lines(probability, image):
    """int64 [n, 4] of the image's pixels, from top to bottom."""
    height, width = image.shape[:2]
    step = -(-max(height, width) // 1600)
    found = []
    for left, top, right, bottom in regions(probability > INK):
        wide, high = right - left, bottom - top
        if min(wide, high) < SMALLEST or probability[top:bottom, left:right].mean() < SURE:
            continue
        grow = wide * high * GROWTH / (2 * (wide + high))
        box = np.array([left - grow, top - grow, right + grow, bottom + grow]) * step
        box = np.clip(box.round(), 0, [width, height, width, height])
        if min(box[2:] - box[:2]) >= 1:
            found.append(box)
    found.sort(key=lambda box: (round(box[1] / 10), box[0]))
    return np.array(found[:MOST], np.int64).reshape(-1, 4)


def resize(image, width):
    """Bilinear, to HEIGHT times `width`; -1 to 1, channels first, in the networks' order BGR."""
    pixels = image.astype(np.float32)
    for axis, size in ((0, HEIGHT), (1, width)):
        length = pixels.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = at.astype(np.int64)
        part = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        high = np.minimum(low + 1, length - 1)
        pixels = pixels.take(low, axis) * (1 - part) + pixels.take(high, axis) * part
    return pixels.transpose(2, 0, 1)[::-1] / 127.5 - 1


def cut(image, boxes):
    """The lines, their widths, and how they begin. Where there is none, one line that is blank:
    the networks want a row, and the last step knows by the boxes that it is none.
    """
    pieces = [image[top:bottom, left:right] for left, top, right, bottom in boxes]
    pieces = pieces or [np.full((HEIGHT, SHORTEST, 3), 255, np.uint8)]
    widths = [max(1, round(HEIGHT * piece.shape[1] / piece.shape[0])) for piece in pieces]
    line = np.zeros((len(pieces), 3, HEIGHT, max(SHORTEST, *widths)), np.float32)
    head = np.zeros((len(pieces), 3, HEIGHT, HEAD), np.float32)
    for index, (piece, width) in enumerate(zip(pieces, widths, strict=True)):
        line[index, :, :, :width] = resize(piece, width)
        head[index, :, :, : min(width, HEAD)] = resize(piece, min(width, HEAD))
    return line, np.array(widths, np.int64), head


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        probability = pb_utils.get_input_tensor_by_name(request, "map").as_numpy()[0, 0]
        box = lines(probability, image)
        line, width, head = cut(image, box)
        made = {"box": box, "line": line, "width": width, "head": head}
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in made.items()])
