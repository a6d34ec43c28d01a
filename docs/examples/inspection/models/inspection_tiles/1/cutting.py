"""A picture cut into tiles of one size that overlap."""

import numpy as np


def starts(length, tile, overlap):
    """Where tiles begin along a side: evenly spread, with at least `overlap` in common."""
    if length <= tile:
        return [0]
    gaps = -(-(length - tile) // (tile - overlap))
    return [round(number * (length - tile) / gaps) for number in range(gaps + 1)]


def windows(width, height, tile, overlap):
    """int64 [n, 4]: left, top, right, bottom of each tile, row by row. In a picture that is
    smaller than a tile they reach beyond it.
    """
    corners = [
        (left, top, left + tile, top + tile)
        for top in starts(height, tile, overlap)
        for left in starts(width, tile, overlap)
    ]
    return np.array(corners, np.int64)


def cut(picture, places):
    """uint8 [height, width, 3] to uint8 [n, 3, tile, tile]; what is beyond the picture is black."""
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    size = places[0, 2] - places[0, 0]
    tiles = np.zeros((len(places), 3, size, size), np.uint8)
    for tile, (left, top, right, bottom) in zip(tiles, places, strict=True):
        part = planes[:, top:bottom, left:right]
        tile[:, : part.shape[1], : part.shape[2]] = part
    return tiles
