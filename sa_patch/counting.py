"""How many (query, key) pairs there are: closed forms for whole sequences. Pure integers."""


def triangle(count: int) -> int:
    """1 + 2 + ... + count."""
    return count * (count + 1) // 2


def window_pairs(length: int, window: int) -> int:
    """Pairs of causal sliding-window attention: n w - w (w - 1) / 2, the unit all budgets are measured in."""
    window = min(window, length)
    return length * window - triangle(window - 1)


def band_pairs(length: int, width: int, circular: bool = False) -> int:
    """Pairs of a Band in any order: of two tokens of near ranks the later one sees the other, and each sees itself."""
    reach = min(width, length) - 1
    if not circular:
        return window_pairs(length, reach + 1)
    return length * (reach + 1) if 2 * reach < length else triangle(length)


def run_pairs(length: int, run_size: int) -> int:
    """Pairs (i, j), j <= i, inside consecutive runs of `run_size` tokens."""
    full, rest = divmod(length, run_size)
    return full * triangle(run_size) + triangle(rest)


def extra_pairs(length: int, sinks: int, local: int) -> int:
    """Pairs (i, j), j < i, with j < sinks or i - j < local."""
    reach = max(min(local, length), 1)
    beyond = [max(0, length - key - reach) for key in range(min(sinks, length))]
    return window_pairs(length, reach) - length + sum(beyond)
