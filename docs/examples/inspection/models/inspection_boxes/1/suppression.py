"""From what a detector says of each tile's positions to boxes on the whole picture."""

import numpy as np

STRIDES = (8, 16)
"""Pixels from one position to the next, on each level of the detector."""

CANDIDATES = 2000


def centres(tile):
    """float32 [positions, 2]: x and y of a tile's positions, level by level, row by row."""
    levels = []
    for stride in STRIDES:
        along = (np.arange(tile // stride, dtype=np.float32) + 0.5) * stride
        y, x = np.meshgrid(along, along, indexing="ij")
        levels.append(np.stack([x.ravel(), y.ravel()], 1))
    return np.concatenate(levels)


def candidates(scores, distances, windows, score):
    """Positions whose best class has that score: boxes in the tile, scores, classes, tiles."""
    classes = scores.argmax(2)
    best = np.take_along_axis(scores, classes[..., None], 2)[..., 0]
    tile, position = np.nonzero(best >= score)
    order = np.argsort(-best[tile, position], kind="stable")[:CANDIDATES]
    tile, position = tile[order], position[order]
    centre = centres(int(windows[0, 2] - windows[0, 0]))[position]
    reach = distances[tile, position]
    boxes = np.concatenate([centre - reach[:, :2], centre + reach[:, 2:]], 1)
    return boxes, best[tile, position], classes[tile, position], tile


def seen_whole(boxes, windows, size, margin):
    """Whether a box's middle is not so near to its tile's edge that the neighbour sees more of it;
    beyond the picture's own edge there is none.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    first = np.where(windows[:, :2] > 0, margin, -np.inf)
    last = np.where(windows[:, 2:] < size, windows[:, 2:] - windows[:, :2] - margin, np.inf)
    return ((middle >= first) & (middle <= last)).all(1)


def overlaps(box, others):
    """Intersection over union of one box with each of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.maximum(sides, 0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return common / np.maximum(areas - common, 1e-6)


def suppressed(boxes, classes, most, overlap):
    """The indices of those, the best first, that no better one of their class stands for."""
    kept = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(best)
        same = classes[left] == classes[best]
        left = left[~(same & (overlaps(boxes[best], boxes[left]) > overlap))]
    return np.array(kept, np.int64)


def found(scores, distances, windows, size, *, score, overlap, margin, most):
    """`scores` [n, positions, classes] and `distances` [n, positions, 4] of n tiles at `windows`
    [n, 4] of a picture of `size` [width, height]: boxes float32 [k, 4] in the picture's pixels,
    scores float32 [k] and classes int64 [k], the best first.
    """
    boxes, best, classes, tile = candidates(scores, distances, windows, score)
    whole = seen_whole(boxes, windows[tile], size, margin)
    boxes = (boxes + np.tile(windows[tile, :2], 2))[whole]
    boxes = np.clip(boxes, 0, np.tile(size, 2)).astype(np.float32)
    best, classes = best[whole], classes[whole]
    kept = suppressed(boxes, classes, most, overlap)
    return boxes[kept], best[kept], classes[kept]
