"""The retention of RMT once more, in float64 numpy and in loops over heads and positions, written from the paper."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def along_width(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_rates: np.ndarray) -> np.ndarray:
    """Each position looks along its own row; arrays are [height width heads dim]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    height, width, heads, _ = q.shape
    y = np.zeros(v.shape)
    for h in range(height):
        for n in range(heads):
            for w in range(width):
                logits = np.array([q[h, w, n] @ k[h, i, n] + log_rates[n] * abs(w - i) for i in range(width)])
                y[h, w, n] = softmax(logits) @ v[h, :, n]
    return y


def along_height(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_rates: np.ndarray) -> np.ndarray:
    """Each position looks along its own column."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    height, width, heads, _ = q.shape
    y = np.zeros(v.shape)
    for w in range(width):
        for n in range(heads):
            for h in range(height):
                logits = np.array([q[h, w, n] @ k[i, w, n] + log_rates[n] * abs(h - i) for i in range(height)])
                y[h, w, n] = softmax(logits) @ v[:, w, n]
    return y


def decomposed(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_rates: np.ndarray) -> np.ndarray:
    """Along the width, then along the height of that result."""
    return along_height(q, k, along_width(q, k, v, log_rates), log_rates)


def full(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_rates: np.ndarray) -> np.ndarray:
    """Each position looks at all positions."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    height, width, heads, _ = q.shape
    y = np.zeros(v.shape)
    positions = [(h, w) for h in range(height) for w in range(width)]
    for h, w in positions:
        for n in range(heads):
            logits = [q[h, w, n] @ k[i, j, n] + log_rates[n] * (abs(h - i) + abs(w - j)) for i, j in positions]
            weights = softmax(np.array(logits))
            y[h, w, n] = sum(weight * v[i, j, n] for weight, (i, j) in zip(weights, positions, strict=True))
    return y


def rotate(x: np.ndarray) -> np.ndarray:
    """Pairs of channels of [height width heads dim] turned by angle * (h * width + w)."""
    x = np.asarray(x, np.float64)
    height, width, _, dim = x.shape
    y = np.zeros(x.shape)
    for h in range(height):
        for w in range(width):
            for pair in range(dim // 2):
                exponent = pair / (dim // 2 - 1) if dim > 2 else 0.0
                phase = 10000.0**-exponent * (h * width + w)
                x0, x1 = x[h, w, :, 2 * pair], x[h, w, :, 2 * pair + 1]
                y[h, w, :, 2 * pair] = x0 * np.cos(phase) - x1 * np.sin(phase)
                y[h, w, :, 2 * pair + 1] = x1 * np.cos(phase) + x0 * np.sin(phase)
    return y


def log_decay_rates(num_heads: int, start: float, span: float) -> np.ndarray:
    return np.array([np.log(1 - 2.0 ** (-start - span * i / num_heads)) for i in range(num_heads)])


def depthwise_conv2d(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """One output position at a time; x is [batch height width channels], kernel [height width 1 channels]."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    batch, height, width, _ = x.shape
    kernel_height, kernel_width = kernel.shape[:2]
    y = np.zeros(x.shape)
    for b in range(batch):
        for h in range(height):
            for w in range(width):
                for i in range(kernel_height):
                    for j in range(kernel_width):
                        row, column = h + i - kernel_height // 2, w + j - kernel_width // 2
                        if 0 <= row < height and 0 <= column < width:
                            y[b, h, w] += x[b, row, column] * kernel[i, j, 0]
    return y
