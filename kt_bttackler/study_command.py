"""Record searches whose every training runs to its end, to replay diagnoses on."""

from __future__ import annotations

import argparse
import pathlib

from kt_bttackler.cli import UsageError, at_least, quiet_loading

TASKS = ("cifar10-cnn", "cifar10-lstm", "exchange-transformer")


EPILOG = """\
examples:
  kt-bttackler study record cifar10-cnn --folder cnn --data cifar10.npz --estimate
  kt-bttackler study record cifar10-cnn --folder cnn --data cifar10.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `kt-bttackler study record`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    record = actions.add_parser(
        "record", help="record a random search; one that was broken off goes on"
    )
    record.add_argument("task", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    record.add_argument(
        "--folder",
        type=pathlib.Path,
        required=True,
        metavar="DIR",
        help="where the study is, or is to be",
    )
    record.add_argument(
        "--data",
        type=pathlib.Path,
        required=True,
        metavar="PATH",
        help="CIFAR-10 as an npz file with x_train, y_train, x_test, y_test, or the "
        "exchange rates, lines of 8 numbers, which may be gzipped",
    )
    record.add_argument(
        "--trials", type=at_least(1), default=200, help="default: %(default)s"
    )
    record.add_argument(
        "--first",
        type=at_least(0),
        default=0,
        metavar="N",
        help="number of the first trial to record, to share a study among processes "
        "(default: 0)",
    )
    record.add_argument(
        "--seed", type=at_least(0), default=0, help="default: %(default)s"
    )
    record.add_argument(
        "--estimate",
        action="store_true",
        help="record nothing: train a few configurations for two epochs, and say how "
        "long the study would take",
    )


def run(options: argparse.Namespace) -> int:
    """Records, or estimates what recording would take.

    Returns:
        The exit code 0.

    Raises:
        UsageError: an option or a file is wrong.
    """
    if not options.data.is_file():
        raise UsageError(f"--data: {options.data} is no file.")
    with quiet_loading():
        import tensorflow as tf

        from kt_bttackler import study_recording
        from kt_bttackler.paper_tasks import TASKS
    # The clock of a study is the CPU time of one thread.
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    task = TASKS[options.task]
    try:
        if options.estimate:
            estimate = study_recording.estimate(
                task, options.data, options.trials, seed=options.seed
            )
            print(estimate)
            return 0
        study_recording.record(
            task,
            options.folder,
            data=options.data,
            trials=options.trials,
            first=options.first,
            seed=options.seed,
            tell=lambda line: print(line, flush=True),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0
