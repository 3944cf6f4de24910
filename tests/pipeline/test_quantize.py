import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.quantize import column, list_type, quantized

OUTPUTS = ("float32", "float16", "int8", "binary", "ubinary")
VECTORS = arrays(
    np.float32, st.tuples(st.integers(0, 6), st.just(16)), elements=st.floats(-1, 1, width=32, allow_subnormal=False)
)


@given(values_RD=VECTORS, output=st.sampled_from(OUTPUTS))
def test_a_row_is_quantised_by_itself(values_RD, output):
    together = quantized(values_RD, output)
    alone = [quantized(values_RD[row : row + 1], output)[0] for row in range(len(values_RD))]
    assert together.tolist() == [row.tolist() for row in alone]


@given(values_RD=VECTORS)
def test_int8_is_at_most_half_a_step_off_and_keeps_sign_and_zero(values_RD):
    kept_RD = quantized(values_RD, "int8")
    assert kept_RD.dtype == np.int8
    assert np.abs(kept_RD / 127 - values_RD).max(initial=0) <= 1 / 254 + 1e-6
    np.testing.assert_array_equal(quantized(-values_RD, "int8"), -kept_RD)


def test_numbers_by_hand():
    values_RD = np.array([[1, -1, 0, 0.5, -0.5, 1.0001, 70_000, -70_000]], np.float32)
    assert quantized(values_RD, "int8").tolist() == [[127, -127, 0, 64, -64, 127, 127, -127]]
    assert quantized(values_RD, "ubinary").tolist() == [[0b10010110]]
    assert quantized(values_RD, "binary").tolist() == [[0b10010110 - 128]]
    assert quantized(values_RD, "float16")[0, [0, 6, 7]].tolist() == [1, 65504, -65504]
    assert quantized(values_RD, "float32") is values_RD


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_column_has_its_type_and_a_failed_row_is_null(output):
    values_RD = np.array([[0.5] * 16, [np.nan] * 16, [-0.5] * 16], np.float32)
    made = column(values_RD, np.array([True, False, True]), output)
    assert made.type == list_type(output, 16)
    assert made.is_null().to_pylist() == [False, True, False]
    assert made[0].as_py() == quantized(values_RD[:1], output)[0].tolist()


def test_bits_are_an_eighth_as_long():
    assert list_type("ubinary", 384) == pa.list_(pa.uint8(), 48)
    assert list_type("binary", 384) == pa.list_(pa.int8(), 48)
    assert list_type("int8", 384) == pa.list_(pa.int8(), 384)
    assert list_type("float16", 384) == pa.list_(pa.float16(), 384)


@pytest.fixture(scope="module")
def quantize_embeddings():
    reason = "the reference for quantised vectors is not installed"
    return pytest.importorskip("sentence_transformers", reason=reason).util.quantize_embeddings


@given(values_RD=VECTORS)
def test_sentence_transformers_makes_the_same_bits_and_nearly_the_same_integers(quantize_embeddings, values_RD):
    for output in ("binary", "ubinary"):
        np.testing.assert_array_equal(quantized(values_RD, output), quantize_embeddings(values_RD, output))
    ranges = np.array([[-1.0] * 16, [1.0] * 16], np.float32)
    theirs = quantize_embeddings(values_RD, "int8", ranges=ranges).astype(np.int16)
    assert set(np.unique(quantized(values_RD, "int8") - theirs).tolist()) <= {0, 1, 2}
