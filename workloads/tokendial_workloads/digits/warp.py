"""Slightly turned, slanted and resized copies of training digits, so that a thousand digits do not suffice to memorise.

Shapes: n digits, v copies each, 8 x 8 pixels.
"""

import numpy as np
from tokendial.schedule.draw import stream_key

from tokendial_workloads.digits.mosaic import Stream

TURN_RADIANS, SLANT, RESIZE, SHIFT_PIXELS = 0.2, 0.15, 0.12, 0.5


def warped(ink_nHW: np.ndarray, num_copies: int) -> np.ndarray:
    """The digits and `num_copies` warped copies of each, [n * (1 + v), 8, 8]; always the same copies."""
    if num_copies == 0:
        return ink_nHW
    stream = Stream(stream_key("digits/warp"))
    affine = np.stack([_affine(stream) for _ in range(len(ink_nHW) * num_copies)])
    return np.concatenate([ink_nHW, _sampled(np.repeat(ink_nHW, num_copies, axis=0), affine)])


def _affine(stream: Stream) -> np.ndarray:
    """A 2 x 3 map from target to source pixels about the centre."""

    def within(limit: float) -> float:
        return limit * (2 * stream.below(1 << 20) / (1 << 20) - 1)

    angle, slant = within(TURN_RADIANS), within(SLANT)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = np.array([[1 + within(RESIZE), slant], [0, 1 + within(RESIZE)]])
    return np.column_stack([turn @ size, [within(SHIFT_PIXELS), within(SHIFT_PIXELS)]])


def _sampled(ink_nHW: np.ndarray, affine_n23: np.ndarray) -> np.ndarray:
    """Bilinear; ink outside of the picture is 0."""
    height, width = ink_nHW.shape[1:]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    target_P3 = np.column_stack([np.indices((height, width)).reshape(2, -1).T - centre, np.ones(height * width)])
    source_nP2 = np.einsum("nij,pj->npi", affine_n23, target_P3) + centre
    corner_nP2 = np.floor(source_nP2).astype(int)
    share_nP2 = source_nP2 - corner_nP2
    padded = np.pad(ink_nHW, ((0, 0), (2, 2), (2, 2)))
    picture_n1 = np.arange(len(ink_nHW))[:, None]
    total = np.zeros(source_nP2.shape[:2])
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - down - share_nP2[..., 0]) * np.abs(1 - right - share_nP2[..., 1])
        row = (corner_nP2[..., 0] + down + 2).clip(0, height + 3)
        column = (corner_nP2[..., 1] + right + 2).clip(0, width + 3)
        total += weight * padded[picture_n1, row, column]
    return total.reshape(ink_nHW.shape).astype(np.float32)
