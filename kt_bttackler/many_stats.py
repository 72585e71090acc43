"""Statistics of many tensors: small ones of one size are measured together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from kt_bttackler.stats import SAMPLE, SUMMARY, about_mean, sample, summarize

# Tensors up to this size are measured together with others of their size, as rows of
# one array: what each call of numpy costs is most of what a small tensor costs.
_MAX_ROW = 1_024
_FEWEST_ROWS = 6
_MAX_ROWS_ELEMENTS = 65_536


def summarize_all(tensors: Sequence[np.ndarray | None]) -> np.ndarray:
    """Summarizes every tensor, small ones of one size together.

    Args:
        tensors: as for `summarize`; `None` where there is none.

    Returns:
        One row per tensor in the order of `SUMMARY`, nan for `None`, [V, 12].

    Raises:
        TypeError: If the elements are not real numbers of at most 64 bits.

    Example:
        >>> summarize_all([np.array([1.0, 3.0]), None])[:, 0].tolist()
        [2.0, nan]
    """
    return _measured(tensors, len(SUMMARY), summarize, _summarize_rows)


def sample_all(tensors: Sequence[np.ndarray | None]) -> np.ndarray:
    """Samples every tensor, small ones of one size together.

    Args:
        tensors: as for `sample`; `None` where there is none.

    Returns:
        One row per tensor in the order of `SAMPLE`, nan for `None`, [V, 4].

    Raises:
        TypeError: If the elements are not real numbers of at most 64 bits.

    Example:
        >>> sample_all([np.array([1.0, -3.0]), None])[:, 0].tolist()
        [2.0, nan]
    """
    return _measured(tensors, len(SAMPLE), sample, _sample_rows)


def _measured(
    tensors: Sequence[np.ndarray | None],
    width: int,
    one: Callable[[np.ndarray], tuple[float, ...]],
    rows: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Measures each tensor by `one`, or several of one size and type by `rows`.

    Args:
        tensors: V of them.
        width: number of statistics.
        one: measures a tensor of any kind.
        rows: measures non-empty float32 or float64, [k, n] to [k, width], and says
            which rows are finite, [k]; only these are measured well.
    """
    table = np.full((len(tensors), width), math.nan)
    alike: dict[tuple[int, np.dtype], dict[int, np.ndarray]] = {}
    for k, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if 0 < tensor.size <= _MAX_ROW and tensor.dtype in (np.float32, np.float64):
            alike.setdefault((tensor.size, tensor.dtype), {})[k] = tensor
        else:
            table[k] = one(tensor)
    for (size, _), members in alike.items():
        waiting, step = list(members), max(1, _MAX_ROWS_ELEMENTS // size)
        while waiting:
            chosen, waiting = waiting[:step], waiting[step:]
            if len(chosen) >= _FEWEST_ROWS:
                stacked = np.stack([members[k].ravel() for k in chosen])
                with np.errstate(all="ignore"):
                    table[chosen], finite = rows(stacked)
                chosen = [k for k, ok in zip(chosen, finite, strict=True) if not ok]
            for k in chosen:
                table[k] = one(members[k])
    return table


def _summarize_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`summarize` of every finite row, and which rows are finite; n > 0."""
    ordered = np.sort(rows, axis=1)
    values = ordered.astype(np.float64)
    low, high = values[:, 0].copy(), values[:, -1].copy()
    quartiles = [_quantile_of_rows(values, share) for share in (0.25, 0.5, 0.75)]
    median = quartiles[1]
    exponent = np.clip(np.frexp(np.maximum(-low, high))[1], -1000, 1000)
    unit, per_unit = np.ldexp(1.0, exponent), np.ldexp(1.0, -exponent)
    values *= per_unit[:, None]
    magnitudes = np.abs(values).mean(axis=1)
    values -= (median * per_unit)[:, None]
    squares = values * values
    count = rows.shape[1]
    first = values.mean(axis=1)
    mean, variance, skewness, kurtosis = about_mean(
        first,
        squares.mean(axis=1),
        np.einsum("kn,kn->k", squares, values) / count,
        np.einsum("kn,kn->k", squares, squares) / count,
        low == high,
    )
    zero_ratio = np.count_nonzero(ordered == 0, axis=1) / count
    table = [
        median + mean * unit,
        variance * unit * unit,
        median,
        low,
        high,
        quartiles[0],
        quartiles[2],
        skewness,
        kurtosis,
        zero_ratio,
        magnitudes * unit,
        np.ones(len(rows)),
    ]
    finite = np.isfinite(low) & np.isfinite(high)  # what is not is sorted to the ends
    return np.column_stack(table) + 0.0, finite  # without the sign of -0.0


def _sample_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`sample` of every finite row, and which rows are finite; n > 0."""
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1).astype(np.float64)
    total = np.einsum("kn->k", magnitudes.astype(np.float64, copy=False))
    table = np.ones((len(rows), len(SAMPLE)))
    table[:, 0] = np.minimum(total / rows.shape[1], largest)
    table[:, 1] = largest
    table[:, 2] = np.count_nonzero(magnitudes == 0, axis=1) / rows.shape[1]
    return table, np.isfinite(largest)


def _quantile_of_rows(values: np.ndarray, share: float) -> np.ndarray:
    """`_quantile` of every row of float64 `values` [k, n] that are sorted."""
    position = (values.shape[1] - 1) * share
    index = int(position)
    low = values[:, index]
    high = values[:, min(index + 1, values.shape[1] - 1)]
    value = low * (1.0 - (position - index)) + high * (position - index)
    clipped: np.ndarray = np.clip(value, low, high)
    return clipped
