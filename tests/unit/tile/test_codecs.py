"""What every codec keeps: exact values and norms, bounds, no crash on foreign bytes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block import sending
from blyan_proto.block.model import Codec, CodecChoice, TensorClass
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile import compress

FORMS = (
    "DENSE",
    "LR4:1",
    "LR4:255",
    "LRC:1",
    "LRC:20",
    "LRC:255",
    "SC:1/1",
    "SC:64/2",
    "SC:1024/1",
    "SC:1024/2",
    "Q:1",
    "Q:2",
    "Q:4",
    "Q:8",
    "ROWS:LR4/3",
    "ROWS:LRC/4",
    "ROWS:Q/1",
    "ROWS:Q/4",
)
forms = st.sampled_from(FORMS).map(sending.parse)
shapes = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([(64, 64), (65, 64), (1, 4097), (129, 1), (90, 130)]),
)


def tile(shape: tuple[int, ...], seed: int, kind: int = 0) -> np.ndarray:
    """Gaussian, heavy-tailed, mostly zero, or zero."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * 2e-3
    if kind == 1:
        x = x**3
    if kind >= 2:
        x = x * (generator.random((shape[0], 1)) < (0.2 if kind == 2 else 0))
    return x.astype(np.float32)


def exact(values: np.ndarray) -> Fraction:
    return sum((Fraction(v) ** 2 for v in values.ravel().tolist()), Fraction(0))


@settings(max_examples=50, deadline=None)
@given(forms, shapes, st.integers(0, 2**32), st.integers(0, 3))
def test_lengths_values_and_norms(choice, shape, seed, kind):
    x = tile(shape, seed, kind)
    raw, _ = compress.encode(*choice, x)
    compress.check(*choice, raw, shape)
    assert len(raw) <= compress.encoded_bytes(*choice, shape)
    values = compress.decode(raw, shape)
    assert values.dtype == np.float64 and values.shape == shape
    assert (values.astype(np.float32) == values).all()  # few bits times a power of two
    norm, scale = compress.norm_squared(raw, shape)
    assert Fraction(norm) * Fraction(2) ** scale == exact(values)
    error = float(np.square(values - x).sum())
    assert error <= float(np.square(x, dtype=np.float64).sum()) * 1.001


@settings(max_examples=50, deadline=None)
@given(forms, shapes, st.data())
def test_changed_bytes_only_raise_protocol_errors(choice, shape, data):
    raw = bytearray(compress.encode(*choice, tile(shape, 5))[0])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(max(0, len(raw) - 3), len(raw))) :]
    try:
        values = compress.decode(bytes(raw), shape)
        assert np.isfinite(values.astype(np.float32)).all()
        norm, scale = compress.norm_squared(bytes(raw), shape)
        assert Fraction(norm) * Fraction(2) ** scale == exact(values)
    except ProtocolError:
        pass


@pytest.mark.parametrize("form", FORMS)
def test_cut_and_lengthened(form):
    shape, choice = (40, 130), sending.parse(form)
    raw, _ = compress.encode(*choice, tile(shape, 1))
    for length in {*range(40), *range(len(raw) - 40, len(raw))} & {*range(len(raw))}:
        with pytest.raises(DecodeError):
            compress.decode(raw[:length], shape)
    for more in (b"\0", b"\xff", bytes(10_000)):
        with pytest.raises(DecodeError):
            compress.decode(raw + more, shape)
    with pytest.raises(LimitExceeded):
        compress.decode(raw, (2**20, 2**20))


@pytest.mark.parametrize("form", FORMS)
def test_not_finite_or_far_too_large(form):
    choice = sending.parse(form)
    for bad in (np.nan, np.inf, -np.inf, 3.4e38):
        x = tile((12, 7), 1)
        x[:, 3] = bad
        with pytest.raises(ValueError):
            compress.encode(*choice, x)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "DENSE"])
@pytest.mark.parametrize("magnitude", [1e-36, 1e-12, 1e12, 1e27])
def test_magnitude_does_not_matter(form, magnitude):
    choice, x = sending.parse(form), tile((40, 130), 3).astype(np.float64)
    errors = []
    for factor in (1.0, magnitude):
        scaled = (x * factor).astype(np.float32)
        values = compress.decode(compress.encode(*choice, scaled)[0], x.shape) / factor
        errors.append(np.linalg.norm(values - x) / np.linalg.norm(x))
    assert abs(errors[0] - errors[1]) < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_smallest_numbers_do_not_fail(form):
    x = np.full((40, 30), 2.0**-149, np.float32)
    raw, _ = compress.encode(*sending.parse(form), x)
    assert np.isfinite(compress.decode(raw, x.shape)).all()


@pytest.mark.parametrize(
    "form, error", [("Q:1", 0.61), ("Q:2", 0.35), ("Q:4", 0.11), ("Q:8", 0.01)]
)
def test_q_is_close_to_the_best_quantiser_of_its_bits(form, error):
    x = tile((256, 300), 2)
    raw, _ = compress.encode(*sending.parse(form), x)
    values = compress.decode(raw, x.shape)
    assert np.linalg.norm(values - x) < error * np.linalg.norm(x)


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "columns"])
@pytest.mark.parametrize(
    "kept, bits, most", [(64, 2, 10.1), (64, 1, 9.0), (16, 1, 12.0), (1024, 1, 4.5)]
)
def test_sc_sends_the_largest_of_each_chunk_in_few_bits(kind, kept, bits, most):
    x = tile((200, 105), 2, kind == "heavy")
    if kind == "columns":
        x[:, ::7] *= 100
    raw, _ = compress.encode(Codec.SC, sending.sparse(kept, bits), x)
    values = compress.decode(raw, x.shape).ravel()
    assert kind != "gaussian" or 8 * len(raw) < most * np.count_nonzero(values)
    for start in range(0, x.size, 4096):
        part, sent = x.ravel()[start : start + 4096], values[start : start + 4096]
        chosen = sent != 0
        assert np.count_nonzero(chosen) == -(-kept * len(part) // 4096)
        assert (np.sign(sent[chosen]) == np.sign(part[chosen])).all()
        assert abs(part[chosen]).min() >= abs(part[~chosen]).max()
        assert len({abs(v) for v in sent.tolist()}) == bits + 1


def test_rows_that_no_token_touched_are_left_out():
    x = tile((512, 64), 4)
    untouched = np.random.default_rng(1).random(512) < 0.9
    x[untouched] *= 1e-3
    for form in ("ROWS:Q/4", "ROWS:LR4/8"):
        choice = sending.parse(form)
        raw, _ = compress.encode(*choice, x)
        values = compress.decode(raw, x.shape)
        assert not values[untouched].any()
        whole, _ = compress.encode(*sending.parse(form[5:].replace("/", ":")), x)
        assert len(raw) < len(whole) / (2 if "LR4" in form else 6)


def test_settings_are_written_and_read():
    for form in FORMS:
        choice = sending.parse(form)
        assert sending.text_of(*choice) == form
        sending.check(*choice)
    assert sending.parse("sc:64") == sending.parse("SC:64/2")
    for wrong in (
        *(
            "",
            "LR4",
            "LR4:0",
            "LR4:256",
            "LR4:-1",
            "LR4:1/2",
            "SC:0",
            "SC:1025",
            "SC:8/3",
        ),
        *("Q:3", "Q:", "NONE", "ROWS:SC/4", "ROWS:Q", "ROWS:Q/5", "DENSE:1", "LR4:٣"),
        *("ROWS:LR4/256", "ROWS:LR4/0", "SC:5000", "Q:1/1", "GZIP:3", "LR4:99999999"),
    ):
        with pytest.raises(ValueError):
            sending.parse(wrong)


def test_a_text_chooses_for_a_class_and_from_a_round_on():
    before = (
        CodecChoice(TensorClass.MATRIX, 0, *sending.parse("LR4:16")),
        CodecChoice(TensorClass.MATRIX, 9, *sending.parse("LR4:4")),
        CodecChoice(TensorClass.ROUTER, 0, *sending.parse("DENSE")),
    )
    later = sending.chosen(["matrix=Q:4@5", "ROUTER=LR4:2"], before)
    assert later == (
        before[0],
        CodecChoice(TensorClass.MATRIX, 5, Codec.Q, 4),
        CodecChoice(TensorClass.ROUTER, 0, Codec.LR4, 2),
    )
    both = sending.chosen(["LR4:8"], before)
    assert {c.tensor_class for c in both if c.setting == 8} == {
        TensorClass.MATRIX,
        TensorClass.EMBEDDING,
    }
    for wrong in (["head=LR4:8"], ["LR4:8@x"], ["=LR4:8"], ["Q:4", "matrix=Q:8"], [""]):
        with pytest.raises(ValueError):
            sending.chosen(wrong, before)


@given(st.sampled_from(list(Codec)), st.integers(0, 65_535))
def test_only_settings_that_can_be_written_are_accepted(codec, setting):
    try:
        sending.check(codec, setting)
    except ValueError:
        return
    assert sending.parse(sending.text_of(codec, setting)) == (codec, setting)
