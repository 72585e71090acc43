"""The trainings of the benchmark of trust, as data: what is faulty, what is healthy."""

from trust_cases import convolutional, dense, hard, heads, sequences, specimens

PAIRS = (
    *specimens.PAIRS,
    *dense.PAIRS,
    *heads.PAIRS,
    *convolutional.PAIRS,
    *sequences.PAIRS,
)
HARD = hard.CASES
