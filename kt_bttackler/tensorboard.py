"""Writes findings for TensorBoard: scalars of every indicator, the verdict as text.

Event files are written by tensorboard itself, without TensorFlow operations, so that
writing cannot touch the training.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.markup import table
from kt_bttackler.readings import worst_layers
from kt_bttackler.trace import Trace

_SOUND = "**Nothing was found** in the indicators that were asked."
_CARD = ("indicator", "what", "value", "threshold", "layer", "what to try")
# An indicator, its value and its severity.
Reading = tuple[QualityIndicator, float, float]


class DiagnosisWriter:
    """One run of TensorBoard: the diagnosis of one training.

    Tags are `diagnosis/value/<ID>`, `diagnosis/severity/<ID>` (base-10 logarithm of
    value per threshold in [-3, 3], 0 fires), `diagnosis/score` (the best objective so
    far, of a stopped training the last), `diagnosis/stopped_at`,
    `diagnosis/epochs_saved`, the text `diagnosis/verdict`, and the histograms
    `diagnosis/gradient/<variable>`. Steps are epochs from 0, as Keras counts them.

    Args:
        log_dir: folder of the run.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self._writer = EventFileWriter(os.fspath(log_dir))

    def add_epoch(self, trace: Trace, readings: Iterable[Reading]) -> None:
        """Writes value and severity of indicators at the last epoch."""
        for indicator, value, severity in readings:
            about = (
                f"{indicator.quantity}; positive {indicator.fires} "
                f"{indicator.limit(trace):g}. {indicator.advice}"
            )
            for kind, number in (("value", value), ("severity", severity)):
                if not math.isnan(number):
                    tag = f"diagnosis/{kind}/{indicator.id}"
                    self._add(scalar_pb(tag, number, description=about), trace.epoch)

    def add_score(self, score: float, epoch: int) -> None:
        """Writes what the training counts for in the search."""
        if math.isfinite(score):
            self._add(scalar_pb("diagnosis/score", score), epoch)

    def add_end(
        self, trace: Trace, verdict: Verdict | None, stopped: bool, saved: int
    ) -> None:
        """Writes how a training has ended: numbers, verdict and worst layers.

        Args:
            trace: all of it.
            verdict: on it, or `None`.
            stopped: it was ended for that.
            saved: planned epochs that it was not given.
        """
        epoch = max(1, trace.epoch)
        self._add(scalar_pb("diagnosis/epochs_saved", saved), epoch)
        if stopped:
            self._add(scalar_pb("diagnosis/stopped_at", epoch), epoch)
        card = verdict_card(verdict) if verdict else _SOUND
        at = verdict.epoch if verdict else epoch
        self._add(text_pb("diagnosis/verdict", card), at)
        for variable in worst_layers(trace, verdict):
            self._add_histograms(trace, variable)

    def _add_histograms(self, trace: Trace, variable: int) -> None:
        """Writes the gradient of one variable at every epoch.

        Recorded are extremes and quartiles, so that there are four buckets with a
        quarter of the elements each.
        """
        names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
        edges = np.stack(
            [trace.table(f"gradient/{name}")[:, variable] for name in names], axis=1
        )
        count = trace.header.variable_sizes[variable] / 4
        tag = f"diagnosis/gradient/{trace.header.variables[variable]}"
        for record, row in zip(trace.records, edges, strict=True):
            if np.isfinite(row).all():
                buckets = [[*pair, count] for pair in itertools.pairwise(row)]
                summary = Summary()
                summary.value.add(
                    tag=tag,
                    metadata=histograms.create_summary_metadata(
                        display_name=None,
                        description="One of the layers with the smallest and largest "
                        "gradients, or that the verdict names; each bucket is a "
                        "quarter of its elements.",
                    ),
                    tensor=tensor_util.make_tensor_proto(buckets, dtype=np.float64),
                )
                self._add(summary, record.epoch)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()

    def _add(self, summary: Summary, epoch: int) -> None:
        event = Event(summary=summary, step=epoch - 1)
        self._writer.add_event(event)


def verdict_card(verdict: Verdict) -> str:
    """A verdict in Markdown: what, where, value against threshold, what to try.

    Example:
        >>> from kt_bttackler.indicators import Finding
        >>> finding = Finding("PLC", 2, 1e-5, 1e-3, None, "raise the learning rate")
        >>> verdict = Verdict(True, False, 2, "PLC", (finding,), "AnyFinding")
        >>> print(verdict_card(verdict))
        **Stopped at epoch 2: PLC**
        <BLANKLINE>
        | indicator | what | value | threshold | layer | what to try |
        |---|---|---|---|---|---|
        | PLC | value | 1e-05 | 0.001 |  | raise the learning rate |
    """
    if verdict.stop:
        title = f"Stopped at epoch {verdict.epoch}: {verdict.cause}"
        title += ", nothing more to gain" if verdict.benign else ""
    else:
        title = f"Findings at epoch {verdict.epoch}, not stopped"
    rows = [
        (
            finding.indicator,
            finding.quantity,
            f"{finding.value:.3g}",
            f"{finding.threshold:.3g}",
            finding.layer or "",
            finding.advice,
        )
        for finding in verdict.findings
    ]
    return f"**{title}**\n\n{table(_CARD, rows)}"
