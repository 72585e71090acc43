"""Small data sets, made on the spot by scikit-learn and NumPy, the same every time."""

import dataclasses
import functools
import hashlib

import numpy as np
from sklearn import datasets


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows to train on and rows to validate on.

    Attributes:
        x: inputs, [rows, ...].
        y: targets, [rows, ...], or a dict of them, one per output.
        x_val: inputs of the validation.
        y_val: its targets.
    """

    x: np.ndarray
    y: np.ndarray | dict
    x_val: np.ndarray
    y_val: np.ndarray | dict


def _split(x, y, train, total=None, shuffle=False):
    """The first `train` rows, and the rest up to `total`."""
    if shuffle:
        order = np.random.RandomState(0).permutation(len(x))
        x, y = x[order], y[order]
    x = np.asarray(x)
    x = x if x.dtype == np.int32 else x.astype("float32")
    y = np.asarray(y)
    y = y if y.dtype == np.int32 else y.astype("float32")
    return Data(x[:train], y[:train], x[train:total], y[train:total])


def _standard(values, train):
    """Columns with mean 0 and deviation 1 over the training rows."""
    rows = values[:train]
    return (values - rows.mean(axis=0)) / rows.std(axis=0)


def _one_hot(labels, classes):
    return np.eye(classes, dtype="float32")[labels]


def circle():
    """Two rings, one inside the other; 0 or 1."""
    x, y = datasets.make_circles(1000, noise=0.1, random_state=1)
    low, high = x.min(axis=0), x.max(axis=0)
    return _split(2 * (x - low) / (high - low) - 1, y[:, None], 700)


def blob():
    """Three clouds of points; one-hot."""
    x, y = datasets.make_blobs(
        1000, centers=3, n_features=2, cluster_std=2, random_state=2
    )
    return _split(x, _one_hot(y, 3), 700)


def digits28():
    """Digits, enlarged to 28 x 28; one-hot."""
    digits = datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = (digits.images / 16)[order].repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    return _split(images, _one_hot(digits.target[order], 10), 1297)


def exclusive_or(repeated):
    """The four points of exclusive or, two of them repeated; train = validation."""
    x = [[0, 0], [0, 1], [1, 0], [1, 1]] + repeated * [[1, 1], [0, 0]]
    x = np.array(x, "float32")
    y = (x[:, :1] != x[:, 1:]).astype("float32")
    return Data(x, y, x, y)


def quad():
    """A noisy parabola, unscaled; train = validation."""
    x = np.arange(50)[:, None] / 10
    noise = np.random.RandomState(0).normal(size=x.shape) ** 3
    x, y = x.astype("float32"), (5 * x**2 + noise).astype("float32")
    return Data(x, y, x, y)


def digits(one_hot=False, images=False, scale=1 / 16, train=1000):
    """Digits of 8 x 8 pixels; sparse labels."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1) if images else x
    y = _one_hot(y, 10) if one_hot else y.astype("int32")
    return _split(x * scale, y, train, train + 400, shuffle=True)


def cancer(scaled=True, rolled=False):
    """Cell nuclei, benign or malign; 0 or 1. `rolled`: the label of the row before."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = x[order], y[order]
    x = _standard(x, 400) if scaled else x
    y = np.roll(y, 1) if rolled else y
    return _split(x, y[:, None], 400)


def wine(scaled=True):
    """Chemistry of three wines; sparse labels."""
    x, y = datasets.load_wine(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = x[order], y[order].astype("int32")
    return _split(_standard(x, 120) if scaled else x, y, 120)


def diabetes(scaled=True):
    """Progress of a disease; one number, 25 to 346 or standardised."""
    x, y = datasets.load_diabetes(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = _standard(x[order], 300), y[order]
    return _split(x, (_standard(y, 300) if scaled else y)[:, None], 300)


def friedman(scaled=True, factor=1.0, rows=800):
    """Friedman's first function of ten features; standardised, or as prices."""
    x, y = datasets.make_friedman1(rows + 300, noise=1.0, random_state=0)
    y = _standard(y, rows) if scaled else factor * y
    return _split(2 * x - 1, y[:, None], rows)


def counts():
    """Counts, of which the first of Friedman's functions is the expectation."""
    x, mean = datasets.make_friedman1(1100, random_state=2)
    y = np.random.RandomState(0).poisson(mean)
    return _split(2 * x - 1, y[:, None], 800)


def faint():
    """A linear signal that explains a tenth of the variance."""
    random = np.random.RandomState(0)
    x = random.normal(size=(2400, 8))
    y = x @ random.normal(size=8)
    y = y / y.std() + 3 * random.normal(size=len(y))
    return _split(x, _standard(y, 2000)[:, None], 2000)


def moons():
    """Two half moons; 0 or 1."""
    x, y = datasets.make_moons(900, noise=0.2, random_state=0)
    return _split(x, y[:, None], 600)


def spirals():
    """Two spirals of one and a half turns, wound round each other; 0 or 1."""
    random = np.random.RandomState(0)
    y = random.randint(0, 2, 1200)
    turn = 3 * np.pi * np.sqrt(random.uniform(0.02, 1, 1200))
    angle = turn + np.pi * y
    x = np.stack([turn * np.cos(angle), turn * np.sin(angle)], axis=1) / 6
    return _split(x + 0.02 * random.normal(size=x.shape), y[:, None], 900)


def rare():
    """Two classes, one of them with 6 % of the rows; 0 or 1."""
    x, y = datasets.make_classification(
        1500, 12, n_informative=6, weights=[0.94], class_sep=1.5, random_state=0
    )
    return _split(x, y[:, None], 1000)


def several_labels():
    """Rows with any number of five labels; five columns of 0 and 1."""
    x, y = datasets.make_multilabel_classification(
        1200, 20, n_classes=5, n_labels=2, random_state=0
    )
    return _split(_standard(x, 800), y, 800)


def few_and_noisy(rows=100):
    """Few rows of many features, a tenth of the labels wrong; 0 or 1."""
    x, y = datasets.make_classification(
        rows + 400, 20, n_informative=5, flip_y=0.2, class_sep=1.5, random_state=3
    )
    return _split(_standard(x, rows), y[:, None], rows)


def parity(bits=3):
    """Whether an odd number of the first bits of ten is set; 0 or 1."""
    x = np.random.RandomState(0).randint(0, 2, (1400, 10))
    return _split(2 * x - 1, x[:, :bits].sum(axis=1, keepdims=True) % 2, 1000)


def two_targets():
    """One set of features, a class and a number to tell from it."""
    x, number = datasets.make_friedman1(1100, noise=1.0, random_state=1)
    x, number = (2 * x - 1).astype("float32"), _standard(number, 800)[:, None]
    label = (number + 0.3 * np.random.RandomState(0).normal(size=number.shape)) > 0.3
    y = {"label": label.astype("float32"), "number": number.astype("float32")}
    rows = {name: values[:800] for name, values in y.items()}
    return Data(x[:800], rows, x[800:], {k: v[800:] for k, v in y.items()})


def pictures():
    """Digits to be drawn again from a few numbers: targets are the inputs."""
    data = digits()
    return Data(data.x, data.x, data.x_val, data.x_val)


def waves(length=24, factor=1.0):
    """Noisy waves of three frequencies; sparse labels."""
    random = np.random.RandomState(0)
    y = random.randint(0, 3, 900).astype("int32")
    frequency = np.array([0.6, 1.0, 1.6])[y][:, None]
    phase = random.uniform(0, 2 * np.pi, (900, 1))
    x = np.sin(frequency * np.arange(length) + phase)
    x = x + 0.3 * random.normal(size=x.shape)
    return _split(factor * x[..., None], y, 600)


def fading(length=24):
    """A fading sum of two noisy channels; standardised."""
    random = np.random.RandomState(0)
    x = random.normal(size=(900, length, 2))
    weights = 0.85 ** np.arange(length)[::-1]
    y = np.tensordot(x, weights, (1, 0)) @ np.array([1.0, -0.5])
    return _split(x, _standard(y, 600)[:, None], 600)


def passengers(scaled=True, window=24):
    """The next value of a seasonal series with a trend; in hundreds, or scaled."""
    random = np.random.RandomState(0)
    time = np.arange(900 + window)
    series = 400 + 0.1 * time + 80 * np.sin(time * np.pi / 6)
    series = series + 15 * random.normal(size=len(time))
    if scaled:
        series = _standard(series, 600)
    windows = np.lib.stride_tricks.sliding_window_view(series, window + 1)
    return _split(windows[:, :-1, None], windows[:, -1:], 600, shuffle=True)


def reviews(length=20, words=300):
    """Words, some of them kind and some not; 1 where the kind ones prevail."""
    random = np.random.RandomState(0)
    tone = np.zeros(words)
    tone[:60], tone[60:120] = 1, -1
    x = random.randint(0, words, (2000, length)).astype("int32")
    total = tone[x].sum(axis=1)
    kept = total != 0
    return _split(x[kept], (total[kept] > 0)[:, None], 1200, 1600)


def topics(length=24, words=200, classes=5):
    """Words, each of them likelier under one of five topics; sparse labels."""
    random = np.random.RandomState(0)
    y = random.randint(0, classes, 1300).astype("int32")
    x = random.randint(0, words, (1300, length)).astype("int32")
    own = random.uniform(size=x.shape) < 0.2
    x[own] = ((x - x % classes) + y[:, None])[own]
    return _split(x, y, 900)


def ratings(scaled=True):
    """What 60 users think of 50 films, ids in one table; 0 to 100 or standardised."""
    random = np.random.RandomState(0)
    users, films = random.normal(size=(60, 3)), random.normal(size=(50, 3))
    pairs = np.stack([random.randint(0, 60, 2400), random.randint(0, 50, 2400)], 1)
    bias = random.normal(size=60)[pairs[:, 0]] + random.normal(size=50)[pairs[:, 1]]
    y = bias + (users[pairs[:, 0]] * films[pairs[:, 1]]).sum(axis=1) / 2
    y = _standard(y + 0.3 * random.normal(size=len(y)), 1800)
    y = y if scaled else 60 + 15 * y
    return _split((pairs + np.array([0, 60])).astype("int32"), y[:, None], 1800)


DATA = {
    "circle": circle,
    "blob": blob,
    "digits28": digits28,
    "xor4": functools.partial(exclusive_or, 0),
    "xor6": functools.partial(exclusive_or, 1),
    "quad": quad,
    "digits": digits,
    "digits one-hot": functools.partial(digits, one_hot=True),
    "digits 0-255": functools.partial(digits, scale=255 / 16),
    "images": functools.partial(digits, images=True),
    "images 0-255": functools.partial(digits, images=True, scale=255 / 16),
    "cancer": cancer,
    "cancer raw": functools.partial(cancer, scaled=False),
    "cancer rolled": functools.partial(cancer, rolled=True),
    "wine": wine,
    "wine raw": functools.partial(wine, scaled=False),
    "diabetes": diabetes,
    "diabetes raw": functools.partial(diabetes, scaled=False),
    "friedman": friedman,
    "prices": functools.partial(friedman, scaled=False, factor=20_000.0),
    "counts": counts,
    "faint": faint,
    "moons": moons,
    "spirals": spirals,
    "rare": rare,
    "several labels": several_labels,
    "few and noisy": few_and_noisy,
    "parity": parity,
    "parity of four": functools.partial(parity, bits=4),
    "two targets": two_targets,
    "pictures": pictures,
    "waves": waves,
    "waves x100": functools.partial(waves, factor=100.0),
    "long waves": functools.partial(waves, length=60),
    "fading": fading,
    "long fading": functools.partial(fading, length=60),
    "passengers": passengers,
    "passengers raw": functools.partial(passengers, scaled=False),
    "reviews": reviews,
    "topics": topics,
    "ratings": ratings,
    "ratings raw": functools.partial(ratings, scaled=False),
}


@functools.cache
def load(name):
    """The data set of that name.

    Args:
        name: a key of `DATA`.

    Returns:
        The same `Data` at every call.
    """
    return DATA[name]()


@functools.cache
def digest(name):
    """A hash of a data set, to notice when it has changed.

    Args:
        name: a key of `DATA`.
    """
    rows = dataclasses.asdict(load(name))
    content = hashlib.sha256()
    for key, values in sorted(rows.items()):
        parts = values if isinstance(values, dict) else {"": values}
        for part, array in sorted(parts.items()):
            content.update(f"{key} {part} {array.dtype} {array.shape}".encode())
            content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]
