"""Draws a trace for every indicator: `python docs/pictures.py [FOLDER]`.

Each picture shows a specimen of the tests: above the training loss, below what the
indicator measures, its bound, and the epochs at which it is positive.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence
from html import escape

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import specimens  # noqa: E402
import specimens_extended  # noqa: E402

from kt_bttackler.diagnosis import Diagnosis  # noqa: E402
from kt_bttackler.indicators import QualityIndicator  # noqa: E402
from kt_bttackler.trace import Trace  # noqa: E402

SPECIMENS: dict[str, Trace] = {**specimens.SICK, **specimens_extended.SICK}
WIDTH, HEIGHT, LEFT, RIGHT = 460, 250, 62, 448
LOSS, MEASURE = (50, 112), (144, 224)  # top and bottom of the two panels
INK, NOTE, BLUE, RED, AMBER = "#0f172a", "#475569", "#2563eb", "#dc2626", "#d97706"
# Values that differ by more than this factor are drawn on a logarithmic scale.
WIDE = 30.0


class Axis:
    """Maps numbers to heights, between `top` and `bottom`."""

    def __init__(self, numbers: Sequence[float], top: int, bottom: int) -> None:
        known = [number for number in numbers if math.isfinite(number)]
        self.low, self.high = min(known, default=0.0), max(known, default=1.0)
        self.log = self.low > 0 and self.high / self.low > WIDE
        if math.inf in numbers:  # drawn at the top, above all others
            self.high *= 10
        if self.low == self.high:
            margin = abs(self.low) or 1.0
            self.low, self.high = self.low - margin / 2, self.high + margin / 2
        self.top, self.bottom = top, bottom

    def __call__(self, number: float) -> float:
        """The height of a number; infinity is at the top."""
        if math.isinf(number):
            return self.top if number > 0 else self.bottom
        low, high = self.low, self.high
        if self.log:
            number, low, high = (math.log10(each) for each in (number, low, high))
        return self.bottom - (number - low) / (high - low) * (self.bottom - self.top)


def picture(indicator: QualityIndicator, trace: Trace) -> str:
    """One picture as SVG."""
    prefixes = list(trace.prefixes())
    losses = trace.scalar("loss").tolist()
    measures = [indicator.measure(prefix) for prefix in prefixes]
    limits = [indicator.limit(prefix) for prefix in prefixes]
    findings = [indicator(prefix) for prefix in prefixes]
    first = next(finding for finding in findings if finding)
    middle = (LEFT + RIGHT) / 2
    spread = (RIGHT - LEFT - 24) / max(1, len(prefixes) - 1)
    across = [LEFT + 12 + n * spread for n in range(len(prefixes))]
    axis = Axis([*measures, *limits], *MEASURE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif" font-size="11">',
        f"<title>{escape(str(first))}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#f8fafc"/>',
        _text(12, 20, indicator.id, INK, extra='font-weight="bold" font-size="13"'),
        *_panel("training loss", losses, Axis([0.0, *losses], *LOSS), across),
        *_panel(indicator.quantity, measures, axis, across),
        _text(middle, HEIGHT - 8, f"epoch 1 to {len(prefixes)}", NOTE, "middle"),
    ]
    bound = " ".join(
        f"{x:.1f},{axis(y):.1f}" for x, y in zip(across, limits, strict=True)
    )
    parts.append(
        f'<polyline points="{bound}" fill="none" stroke="{RED}" '
        f'stroke-dasharray="4 3"/>'
    )
    for x, y, finding in zip(across, measures, findings, strict=True):
        if finding:
            colour = AMBER if finding.warning else RED
            parts.append(
                f'<circle cx="{x:.1f}" cy="{axis(y):.1f}" r="4" fill="{colour}"/>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    title: str, numbers: Sequence[float], axis: Axis, across: Sequence[float]
) -> list[str]:
    parts = [
        f'<path d="M{LEFT} {axis.top - 6}V{axis.bottom + 6}H{RIGHT}" fill="none" '
        f'stroke="#cbd5e1"/>',
        _text(LEFT + 6, axis.top - 9, title, NOTE),
        _text(LEFT - 6, axis.top + 4, f"{axis.high:.3g}", NOTE, "end"),
        _text(LEFT - 6, axis.bottom + 4, f"{axis.low:.3g}", NOTE, "end"),
    ]
    places = [
        (x, axis(number))
        for x, number in zip(across, numbers, strict=True)
        if not math.isnan(number)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}"/>')
    for x, y in places:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{BLUE}"/>')
    return parts


def _text(
    x: float, y: float, text: str, colour: str, anchor: str = "start", extra: str = ""
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="{anchor}" {extra}>'
        f"{escape(text)}</text>"
    )


def main(folder: pathlib.Path) -> None:
    """Writes `<id>.svg` for every indicator of the preset "extended"."""
    folder.mkdir(parents=True, exist_ok=True)
    for indicator in Diagnosis("extended").indicators:
        drawing = picture(indicator, SPECIMENS[indicator.id])
        path = folder / f"{indicator.id.lower()}.svg"
        path.write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "pictures")
