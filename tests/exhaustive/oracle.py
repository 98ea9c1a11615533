"""What the operations must answer, in float64 by NumPy, SciPy and OpenCV.

SciPy labels a whole batch in one call: as a 3-D stack, with a structure that links cells within a
map and none between maps.
"""

import cv2
import numpy as np
import scipy.ndimage

WITHIN_A_MAP = np.zeros((3, 3, 3))
WITHIN_A_MAP[1] = 1


def levels(cells, cut):
    """The level that each map's foreground exceeds: (count, 1, 1)."""
    mean = cells.mean((1, 2), keepdims=True)
    mean = np.maximum(mean, cells.min((1, 2), keepdims=True))  # the mean rounds
    return {"mean": mean, "mean+eps": mean + 1e-3, "2mean+eps": 2 * mean + 1e-3}[cut]


class Regions:
    """The 8-connected regions of masks (count, grid_h, grid_w), in raster order of first cells."""

    def __init__(self, masks):
        labels, found = scipy.ndimage.label(masks, WITHIN_A_MAP)
        cells = masks[0].size
        flat = labels.ravel()
        first = np.zeros(found + 1, np.int64)
        first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # the last write is the first cell
        order = first[1:].argsort()
        place = np.zeros(found + 1, np.int64)
        place[1:][order] = np.arange(1, found + 1)
        self.labels = place[labels] if (np.diff(order) < 0).any() else labels
        self.map_of = first[1:][order] // cells
        self.count = np.bincount(self.map_of, minlength=len(masks))

    def numbers(self):
        """1, 2, ... in each map, 0 is none: int32."""
        before = (self.count.cumsum() - self.count)[:, None, None]
        return np.where(self.labels > 0, self.labels - before, 0).astype(np.int32)

    def entropies(self, weights=None):
        """-sum p ln p, p a region's share of the weights or else of the cells; +inf without."""
        flat = None if weights is None else weights.ravel()
        sizes = np.bincount(self.labels.ravel(), flat, len(self.map_of) + 1)[1:]
        total = np.bincount(self.map_of, sizes, len(self.count))
        p = sizes / np.where(total > 0, total, 1)[self.map_of]
        terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
        result = np.bincount(self.map_of, terms, len(self.count))
        return np.where(total > 0, np.abs(result), np.inf)


def smooth(cells):
    """Seven taps, sigma 1, mirrored without repeating the edge."""
    return scipy.ndimage.gaussian_filter(cells, 1.0, mode="mirror", radius=3, axes=(1, 2))


def hulls(labels):
    """Area and box (x1, y1, x2, y2) of the hull of each region's cell corners, by OpenCV."""
    areas, boxes = [], []
    for part in scipy.ndimage.find_objects(labels):
        number = len(areas) + 1
        rows, columns = np.nonzero(labels[part] == number)
        cells = np.stack([columns + part[1].start, rows + part[0].start], 1)
        corners = np.concatenate(
            [np.add(cells, corner) for corner in np.ndindex(2, 2)], dtype=np.int32
        )
        x, y, width, height = cv2.boundingRect(corners)  # counts pixels: one more than the extent
        boxes.append((x, y, x + width - 1, y + height - 1))
        areas.append(cv2.contourArea(cv2.convexHull(corners)))
    return areas, boxes
