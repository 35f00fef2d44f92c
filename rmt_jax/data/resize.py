"""Resizing in proportion, in the arithmetic of mmcv, which is OpenCV's: for segmentation and detection."""

import cv2
import numpy as np

# Batches are made in threads and processes already.
cv2.setNumThreads(0)


def rescaled_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """The largest size in the same proportions whose longer and shorter side do not exceed `scale`'s: height, width.

    Source: mmcv `rescale_size`.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [height width 3] resized to `size` (height, width): bilinear, half-pixel centres, not antialiased."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [height width] resized to `size` (height, width): row i is row floor(i * old / new)."""
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
