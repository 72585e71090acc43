"""What `summary` returns: a study that shows itself."""

from __future__ import annotations

import sys

from kt_bttackler import report
from kt_bttackler.study import Study


class Summary:
    """A study as people see it: text in a terminal, a table in a notebook.

    Args:
        study: what `results.study` read.

    Example:
        >>> from kt_bttackler.study import TrialFacts
        >>> trial = TrialFacts("0", "COMPLETED", 0.9, (), "", 10, 10, 4.2, {})
        >>> shown = Summary(Study("val_accuracy", "max", (trial,)))
        >>> shown, "<table" in shown._repr_html_()
        (<Summary of 1 trials>, True)
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    def __str__(self) -> str:
        return report.as_text(self.study)

    def __repr__(self) -> str:
        # Short, so that a prompt does not repeat what was just printed.
        return f"<Summary of {len(self.study.trials)} trials>"

    def _repr_html_(self) -> str:
        # Read by notebooks.
        from kt_bttackler import report_html

        return report_html.as_fragment(self.study)


def in_notebook() -> bool:
    """Whether values show themselves here, as in Jupyter."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")
