"""Pictures that are nearly the same: saved again, resized, brighter or darker, slightly cropped.

A hash finds copies of a file, this finds copies of a picture. Each picture becomes a grey thumbnail whose local mean
and contrast are evened out, so that light and strong outlines count little; of its spectrum the low frequencies are
kept, their amplitudes half whitened, so that a repeating pattern does not outweigh what is peculiar to the picture. The
score of two pictures is the highest correlation over small shifts and over crops of either: band-limited phase
correlation (Ito et al., IEICE Trans. Fundamentals E87-A, 2004), halfway to plain correlation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from iadr1_lib.data.images import open_image
from iadr1_lib.records import Sample

SIDE = 64  # pixels of the thumbnail
_BAND = 16  # frequencies kept on each side of zero; a copy in JPEG or at half the size has lost the higher ones
_COARSE = 4  # frequencies of the signature that chooses candidates
_SMOOTH = 3.0  # pixels over which mean and contrast are evened out
_CROPS = (0.0, 0.015, 0.03, 0.045, 0.06)  # shares cut off at each side that are tried
_KEPT = np.r_[0:_BAND, SIDE - _BAND : SIDE]
_SHIFTS = np.arange(-5, 5.5, 0.5)  # pixels of the thumbnail that are tried along each side
_CANDIDATES = 10  # pictures with the nearest signatures that are looked at closely
# Measured on six sets of real pictures and 18 families of the mini world, 15 to 40 pictures each. Copies (JPEG of
# quality 80, half and 1.5 times the size, 0.7 times as bright or 25 grey values brighter, cropped by 2 to 4 %) score
# 0.912 and more; the lowest are textures saved as JPEG, most are above 0.95. Different pictures of one family stay
# below 0.902, most below 0.8. A part that was taken again in the same pose is found, too: MPDD's plates, up to 0.974.
# There are false alarms where many parts of one shape lie alike: 6 pairs among 1,200 mini test pictures, all washers
# at 0.91 to 0.93. So pairs are listed with their scores, to be looked at.
THRESHOLD = 0.905
_WINDOW = np.outer(*2 * [np.hanning(SIDE + 2)[1:-1]])


class NearDuplicate(NamedTuple):
    """Paths of two pictures and how alike they are, at most 1."""

    first: str
    second: str
    score: float


def near_duplicates(
    first: Iterable[Sample], second: Iterable[Sample] | None = None, threshold: float = THRESHOLD
) -> list[NearDuplicate]:
    """Pairs of nearly the same picture, one of `first` and one of `second`, the most alike first.

    Without `second` the pairs are within `first`, each once. Of every picture the ten others with the nearest coarse
    structure are compared closely, so a picture with more than ten copies may not show them all. A picture of one grey
    only is like none. UserError for a picture that cannot be read.
    """
    left = list(first)
    right = left if second is None else list(second)
    if not left or not right:
        return []
    one = _spectra(left)
    other = one if second is None else _spectra(right)
    best: dict[tuple[int, int], float] = {}
    signatures = _signatures(other)
    for i, signature in enumerate(_signatures(one)):
        alike = signatures @ signature
        if second is None:
            alike[i] = -np.inf
        chosen = np.argsort(-alike, kind="stable")[: min(_CANDIDATES, len(right) - (second is None))]
        for j, score in zip(chosen.tolist(), _scores(one[i], other[chosen]), strict=True):
            if score >= threshold:
                best[(min(i, j), max(i, j)) if second is None else (i, j)] = float(score)
    pairs = [NearDuplicate(left[i].image, right[j].image, round(score, 3)) for (i, j), score in best.items()]
    return sorted(pairs, key=lambda pair: -pair.score)


def likeness(first: Sequence[Sample], second: Sequence[Sample]) -> NDArray[np.float64]:
    """How alike the coarse structures of pictures are, from -1 to 1; an array of first x second."""
    return np.asarray(_signatures(_spectra(first)) @ _signatures(_spectra(second)).T, dtype=float)


def _spectra(samples: Sequence[Sample]) -> NDArray[np.complex64]:
    """Spectra of unit length: pictures x crops x 2 _BAND x 2 _BAND, zero for a picture of one grey."""
    spectra = np.zeros((len(samples), len(_CROPS), 2 * _BAND, 2 * _BAND), dtype=np.complex64)
    for number, sample in enumerate(samples):
        grey = open_image(sample.image).convert("L")
        for place, share in enumerate(_CROPS):
            box = (grey.width * share, grey.height * share, grey.width * (1 - share), grey.height * (1 - share))
            thumbnail = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
            spectra[number, place] = _spectrum(np.asarray(thumbnail, dtype=float))
    return spectra


def _spectrum(thumbnail: NDArray[np.float64]) -> NDArray[np.complex128]:
    even = thumbnail - ndimage.gaussian_filter(thumbnail, _SMOOTH)
    contrast = np.sqrt(ndimage.gaussian_filter(even**2, _SMOOTH))
    even /= contrast + 0.25 * contrast.mean() + 1  # the terms keep the noise of empty regions small
    spectrum = np.fft.fft2((even - even.mean()) * _WINDOW)[np.ix_(_KEPT, _KEPT)]
    spectrum[0, 0] = 0
    spectrum /= np.sqrt(np.abs(spectrum)) + 1e-9
    return spectrum / (np.linalg.norm(spectrum) + 1e-9)


def _signatures(spectra: NDArray[np.complex64]) -> NDArray[np.float32]:
    """The lowest frequencies of the whole pictures as real unit vectors, pictures x numbers."""
    low = np.r_[0:_COARSE, 2 * _BAND - _COARSE : 2 * _BAND]
    coarse = spectra[:, 0][:, low][:, :, low].reshape(len(spectra), -1)
    real = np.concatenate([coarse.real, coarse.imag], axis=1)
    return np.asarray(real / (np.linalg.norm(real, axis=1, keepdims=True) + 1e-9), dtype=np.float32)


def _scores(one: NDArray[np.complex64], others: NDArray[np.complex64]) -> NDArray[np.float64]:
    """The highest correlation of one picture (crops x band x band) with each of `others`, either of them cropped."""
    products = np.concatenate([one[None] * others[:, :1].conj(), one[None, :1] * others[:, 1:].conj()], axis=1)
    waves = np.exp(2j * np.pi * np.outer(_SHIFTS, np.fft.fftfreq(SIDE)[_KEPT])).astype(np.complex64)
    maps = np.real(waves @ products @ waves.T)  # the inverse transform at the shifts that are tried
    return np.asarray(maps.max(axis=(1, 2, 3)), dtype=float)
