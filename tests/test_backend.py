import keras
import numpy as np
import pytest
from gradients import gradients
from helpers import numpy
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import _running_backend, backend, base


@pytest.mark.each_backend
def test_supported_backends_have_a_class_and_others_get_the_base_class(monkeypatch):
    assert type(_running_backend()) is type(backend) is not base.Backend
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    assert type(_running_backend()) is base.Backend


@pytest.mark.each_backend
def test_symbolic_tensors_count_as_traced_and_give_int32_indices():
    seen = []

    class Layer(keras.Layer):
        def call(self, x):
            indices = validation.code_indices("indices", x, 5)
            seen.append((backend.is_traced(x), keras.backend.standardize_dtype(indices.dtype)))
            return indices

    Layer()(keras.Input((2,), dtype="int32"))
    assert set(seen) == {(True, "int32")}
    assert not backend.is_traced(ops.ones((2,)))


@pytest.mark.each_backend
def test_backends_override_only_documented_methods():
    """A misspelled method would override nothing."""
    kinds = [kind for kind in type(backend).__mro__ if not issubclass(base.Backend, kind)]
    own = [name for kind in kinds for name in vars(kind) if not name.startswith("_")]
    assert len(own) >= 5
    assert all(hasattr(base.Backend, name) for name in own)
    assert all(method.__doc__ for name, method in vars(base.Backend).items() if callable(method))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only PyTorch has gradients that we wrote by hand")
@pytest.mark.parametrize("operation", ["normalize", "scores", "squared_errors"])
def test_second_derivatives_equal_those_of_automatic_differentiation(operation, rng):
    import torch

    x, y, towards = (torch.tensor(rng.normal(size=(5, 4)), dtype=torch.float32) for _ in range(3))
    others = {
        "normalize": (),
        "scores": (y,),
        "squared_errors": (y, torch.ones(5, dtype=bool), torch.tensor(5.0), (1.0, 0.0)),
    }[operation]
    found = []
    # The base class has the formulas without gradients.
    for kind in (type(backend), base.Backend):
        x = x.detach().requires_grad_()
        output = getattr(kind, operation)(backend, x, *others)
        while isinstance(output, tuple | list):
            output = output[0]
        (slope,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad((slope * towards).sum(), x)[0].numpy())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.each_backend
def test_normalize_has_the_gradients_of_direction_and_norm(rng):
    x, by_unit, by_length = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), rng.normal(size=(5, 1))
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length
    across = by_unit - unit * (unit * by_unit).sum(-1, keepdims=True)
    for of_unit, of_length in ((1, 1), (1, 0), (0, 1)):

        def value(x, of_unit=of_unit, of_length=of_length):
            parts = zip(backend.normalize(x), (by_unit, by_length), (of_unit, of_length), strict=True)
            return sum(ops.sum(part * ops.convert_to_tensor(by, "float32")) for part, by, used in parts if used)

        (found,) = gradients(value, x.astype("float32"))
        expected = of_unit * across / length + of_length * by_length * unit
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.each_backend
def test_directions_and_gradients_are_finite_for_zero_and_nonfinite_vectors():
    x = np.array([[0, 0], [np.nan, 3], [np.inf, -4]], "float32")
    unit, length = backend.normalize(ops.convert_to_tensor(x))
    np.testing.assert_array_equal(numpy(unit), [[0, 0], [0, 1], [0, -1]])
    np.testing.assert_array_equal(numpy(length), [[0], [3], [4]])
    (found,) = gradients(lambda x: ops.sum(backend.normalize(x)[0]), x)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], 1)


@pytest.mark.each_backend
@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("float32", "float16"), ("float16", "float32")])
def test_rotation_keeps_the_dtypes_of_vectors_and_codes(dtypes):
    z, q = np.array([[300, 0]], dtypes[0]), np.array([[0, 300]], dtypes[1])
    found = backend.rotate(ops.convert_to_tensor(z), ops.convert_to_tensor(q))
    assert keras.backend.standardize_dtype(found.dtype) == dtypes[1]
    np.testing.assert_array_equal(numpy(found), q)
    # A quarter turn maps the direction along the code to the direction along the vector.
    cotangent, codes = (ops.convert_to_tensor(each) for each in (np.array([[2, 1]], dtypes[1]), q))
    (by_z,) = gradients(lambda z: ops.sum(backend.rotate(z, codes) * cotangent), z)
    assert by_z.dtype == dtypes[0]
    np.testing.assert_allclose(by_z, [[1, -2]], rtol=1e-3)


@pytest.mark.each_backend
def test_with_gradients_attaches_the_given_gradients_to_a_constant(rng):
    x, y = rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=(4,)).astype("float32")
    by_x, by_y = rng.normal(size=x.shape).astype("float32"), rng.normal(size=y.shape).astype("float32")
    x[1], by_x[1] = (np.nan, np.inf), 0

    def value(x, y):
        pairs = [(x, ops.convert_to_tensor(by_x)), (y, ops.convert_to_tensor(by_y))]
        return 3 * backend.with_gradients(ops.convert_to_tensor(np.float32(0.3)), pairs)

    assert numpy(value(ops.convert_to_tensor(x), ops.convert_to_tensor(y))) == 3 * np.float32(0.3)
    for found, expected in zip(gradients(value, x, y), (by_x, by_y), strict=True):
        np.testing.assert_allclose(found, 3 * expected, rtol=1e-6)


@pytest.mark.each_backend
def test_relaxed_codes_have_the_gradient_of_mean_codes(rng):
    codes, codebook = rng.normal(size=(5, 2)).astype("float32"), rng.normal(size=(3, 2)).astype("float32")
    p, cotangent = rng.random(size=(5, 3)).astype("float32"), rng.normal(size=(5, 2)).astype("float32")
    np.testing.assert_array_equal(numpy(backend.relax(*map(ops.convert_to_tensor, (codes, p, codebook)))), codes)

    def value(*arguments):
        return ops.sum(backend.relax(*arguments) * ops.convert_to_tensor(cotangent))

    by_codes, by_p, by_codebook = gradients(value, codes, p, codebook)
    np.testing.assert_array_equal(by_codes, cotangent)
    np.testing.assert_allclose(by_p, cotangent @ codebook.T, rtol=1e-5)
    np.testing.assert_array_equal(by_codebook, 0)


@pytest.mark.each_backend
@pytest.mark.parametrize("offset", [0, 1000])
def test_scores_are_negative_squared_distances_up_to_a_constant_per_vector(rng, offset):
    z, e = (rng.integers(-8, 9, size=(n, 3)) / 8 for n in (5, 4))
    cotangent = rng.normal(size=(5, 4)).astype("float32")
    arrays = (z + offset).astype("float32"), (e + offset).astype("float32")
    found = numpy(backend.scores(*map(ops.convert_to_tensor, arrays)))
    differences = z[:, None] - e
    expected = -np.square(differences).sum(-1)
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=1e-4)
    # `scores` may add a constant to each vector's scores. It cancels because the rows of the cotangent sum to 0.
    cotangent -= cotangent.mean(-1, keepdims=True)
    by_z, by_e = gradients(lambda z, e: ops.sum(backend.scores(z, e) * ops.convert_to_tensor(cotangent)), *arrays)
    np.testing.assert_allclose(by_z, -2 * (cotangent[:, :, None] * differences).sum(1), atol=1e-3)
    np.testing.assert_allclose(by_e, 2 * (cotangent[:, :, None] * differences).sum(0), atol=1e-3)


@pytest.mark.each_backend
def test_vectors_with_nonfinite_squares_spoil_neither_scores_nor_gradients():
    z, e = np.array([[np.nan, 1], [np.inf, 1], [3e38, 1], [2, 1]], "float32"), np.array([[1, 2], [3, -4]], "float32")
    np.testing.assert_array_equal(numpy(backend.zero_nonfinite(ops.convert_to_tensor(z))), [[0, 1]] * 3 + [[2, 1]])
    assert np.isfinite(numpy(backend.scores(*map(ops.convert_to_tensor, (z, e))))).all()
    for found in gradients(lambda z, e: ops.sum(backend.scores(z, e) * ops.arange(2.0)), z, e):
        assert np.isfinite(found).all()


def test_seed_generators_draw_the_same_as_those_of_keras():
    ours, theirs = backend.seed_generator(7, "ours"), keras.random.SeedGenerator(7)

    def check():
        for _ in range(2):
            found, expected = (numpy(keras.random.uniform((4,), seed=each)) for each in (ours, theirs))
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(numpy(ours.state), numpy(theirs.state))

    check()
    for each in (ours, theirs):
        each.state.assign([3, 100])
    check()
    # Functions called in a scope read its state and leave the outer state unchanged.
    with keras.StatelessScope() as scope:
        keras.random.uniform((4,), seed=ours)
        scope.add_update((ours.state, ops.convert_to_tensor([5, 0], ours.state.dtype)))
        inside = numpy(keras.random.uniform((4,), seed=ours))
    np.testing.assert_array_equal(inside, numpy(keras.random.uniform((4,), seed=5)))
    check()


@pytest.mark.each_backend
@pytest.mark.parametrize("dim", [1, 3])
def test_vectors_whose_squares_overflow_count_as_nonfinite(dim):
    x = np.array([0, 1e-30, 1e18, 1e19 / dim, 3e19, 3e38, np.inf, np.nan], "float32")[:, None] * np.ones(dim, "float32")
    with np.errstate(over="ignore"):
        expected = np.isfinite(np.square(x).sum(-1))
    found = ops.convert_to_numpy(backend.finite_rows(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(found, expected)
    assert 0 < expected.sum() < len(x)
