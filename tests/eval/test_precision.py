"""What each precision stores, against sentence-transformers, numpy and the definition of the sketches."""

import numpy as np
import pytest

from concept_encoder.eval.corpus.precision import (
    BITS,
    PRECISIONS,
    calibration,
    check_precision,
    quantized,
    restored,
    stored_width,
)

quantization = pytest.importorskip("sentence_transformers.util.quantization")


@pytest.fixture
def vectors():
    """Unit vectors of 42 numbers, no multiple of 4 or 8; the second is of an empty text."""
    found = np.random.default_rng(0).normal(size=(50, 42)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[1] = 0
    return found


@pytest.mark.parametrize(
    ("precision", "cosine"), [("float32", 1.0), ("float16", 1.0), ("int8", 1.0), ("2bit", 0.939), ("ubinary", 0.798)]
)
def test_a_vector_read_back_is_near_and_of_unit_length(vectors, precision, cosine):
    ranges = calibration(vectors)
    codes, scales = quantized(vectors, precision, ranges)
    assert codes.shape == (50, stored_width(42, precision))
    assert codes.nbytes <= 50 * np.ceil(42 * BITS[precision] / 8)
    back = restored(codes, precision, 42, scales, ranges)
    assert not back[1].any()
    rest = np.arange(50) != 1
    assert np.linalg.norm(back[rest], axis=1) == pytest.approx(np.ones(49), abs=1e-3)
    assert (back * vectors).sum(1)[rest].mean() == pytest.approx(cosine, abs=0.01)  # in theory, of normal numbers


def test_int8_and_ubinary_are_those_of_sentence_transformers(vectors):
    ranges = calibration(vectors[:20])  # others are outside
    for precision in ("int8", "ubinary"):
        theirs = quantization.quantize_embeddings(vectors, precision, ranges)
        np.testing.assert_array_equal(quantized(vectors, precision, ranges)[0], theirs)


def test_two_bits_are_those_of_the_sketch(vectors):
    levels = np.sign(vectors) * (1 + 2 * (np.abs(vectors) > vectors.std(1, keepdims=True)))
    norms = np.linalg.norm(levels, axis=1, keepdims=True)
    wanted = np.divide(levels, norms, out=np.zeros_like(levels), where=norms > 0)
    codes, scales = quantized(vectors, "2bit")
    np.testing.assert_allclose(restored(codes, "2bit", 42, scales), wanted, atol=1e-6)
    four = np.array([[-1, 0.1, -0.1, 1]], np.float32)  # beyond the deviation 0.71: the first and the last
    assert quantized(four, "2bit")[0].tolist() == [[0b11_00_01_10]]


@pytest.mark.parametrize("precision", ["2bit", "ubinary"])
def test_a_zero_comes_back_as_the_smallest_negative_number(vectors, precision):
    """In a vector with others; one that is all zeros stays so."""
    vectors[:, :20] = 0
    codes, scales = quantized(vectors, precision)
    back = restored(codes, precision, 42, scales)
    rest = np.arange(50) != 1
    smallest = np.abs(back[rest]).min(1, keepdims=True)
    np.testing.assert_allclose(back[rest, :20], np.repeat(-smallest, 20, 1))
    assert not back[1].any()


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision must be one of float32, float16, int8, 2bit, ubinary, got 'int4'"):
        check_precision("int4")
    for precision in PRECISIONS:
        check_precision(precision)
