"""What every quantizer promises: one test a promise, over the list in `quantizers.py`."""

import math

import keras
import numpy as np
import pytest
from gradients import layer_gradients
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops
from quantizers import DIM, DRAW_OUTPUTS, DRAW_STATE, MOVE_THEIR_CODES, NO_LOSSES, QUANTIZERS

import keras_vqvae


@pytest.fixture(params=QUANTIZERS)
def name(request):
    return request.param


@pytest.fixture
def make(name):
    return QUANTIZERS[name]


@pytest.fixture
def layer(make):
    layer = make()
    layer.build((None, DIM))
    return layer


def numpy(value):
    return ops.convert_to_numpy(value)


def draw(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights(layer):
    return {variable.path: numpy(variable).copy() for variable in layer.variables}


def assert_same_weights(before, after):
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def restore(layer, values):
    for variable in layer.variables:
        variable.assign(values[variable.path])


def losses_of(layer, inputs, mask=None):
    layer(inputs, mask=None if mask is None else ops.convert_to_tensor(mask), training=True)
    return [numpy(loss) for loss in layer.losses]


@pytest.mark.parametrize("leading", [(3,), (2, 5), (2, 3, 4), (1, 2, 3, 2), (2, 1, 2, 1, 3)])
def test_any_leading_dimensions(layer, leading):
    x = draw(*leading, DIM)
    quantized, indices = layer(x, return_indices=True)
    assert tuple(quantized.shape) == x.shape
    assert tuple(indices.shape)[: len(leading)] == leading
    assert keras.backend.standardize_dtype(indices.dtype) == "int32"
    flat = numpy(layer(x.reshape(-1, DIM)))
    np.testing.assert_array_equal(numpy(quantized).reshape(-1, DIM), flat)


def books(layer):
    """How many indices a vector has."""
    return math.prod(layer.index_shape)


def test_decode_inverts_encode(layer, name):
    x = draw(5, 7, DIM)
    quantized, indices = layer(x, return_indices=True)
    np.testing.assert_array_equal(numpy(layer.encode(x)), numpy(indices))
    np.testing.assert_array_equal(numpy(layer.decode(layer.encode(x))), numpy(quantized))
    if name in MOVE_THEIR_CODES:
        return
    # The codes are fixed points.
    np.testing.assert_allclose(numpy(layer(quantized)), numpy(quantized), atol=1e-6)


def test_the_codebook_lists_the_codes(layer):
    if not hasattr(layer, "codebook"):
        pytest.skip("its codes cannot be listed")
    codebook = numpy(layer.codebook)
    assert codebook.shape == (layer.num_embeddings, DIM)
    np.testing.assert_array_equal(numpy(layer.decode(np.arange(layer.num_embeddings))), codebook)


@pytest.mark.parametrize("outside", [-1, 10**9])
def test_an_index_outside_the_codebook_is_an_error(layer, outside):
    indices = np.array(numpy(layer.encode(draw(3, DIM))))
    outside = min(outside, layer.lowest_index - 1) if outside < 0 else outside
    indices.flat[1] = outside
    with pytest.raises(ValueError, match=rf"indices.*Received: indices with \[{outside}\]"):
        layer.decode(indices)


def test_decode_before_build_is_an_error(make):
    with pytest.raises(ValueError, match="must be built"):
        make().decode([0])


def test_losses_are_float32_scalars_and_only_of_training(layer, name):
    layer(draw(6, DIM))
    assert layer.losses == []
    layer(draw(6, DIM), training=True)
    assert bool(layer.losses) == (name not in NO_LOSSES)
    for loss in layer.losses:
        assert tuple(loss.shape) == ()
        assert keras.backend.standardize_dtype(loss.dtype) == "float32"
        assert np.isfinite(numpy(loss))


def test_losses_are_means(layer):
    before = weights(layer)
    x = draw(6, DIM)
    once = losses_of(layer, x)
    restore(layer, before)
    np.testing.assert_allclose(losses_of(layer, np.concatenate([x, x, x])), once, rtol=1e-5)


def test_code_counts_count_the_choices_of_training(layer):
    x, more = draw(6, DIM), draw(3, 2, DIM, seed=1)
    expected = np.zeros((books(layer), layer.num_embeddings), int)
    for inputs in (x, more):
        for column, indices in enumerate(numpy(layer.encode(inputs)).reshape(-1, books(layer)).T):
            np.add.at(expected[column], indices, 1)
        layer(inputs, training=True)
    layer(x)
    np.testing.assert_array_equal(numpy(layer.code_counts).reshape(expected.shape), expected)
    layer.reset_code_counts()
    np.testing.assert_array_equal(numpy(layer.code_counts), 0)


def test_inference_changes_nothing(layer):
    before = weights(layer)
    layer(draw(6, DIM))
    layer(draw(6, DIM), training=False, return_indices=True)
    layer.encode(draw(6, DIM))
    assert_same_weights(before, weights(layer))


@given(mask=st.lists(st.booleans(), min_size=6, max_size=6), junk=st.sampled_from([0.0, 1e4, np.nan, np.inf]))
@pytest.mark.parametrize("name", QUANTIZERS)
def test_masked_positions_touch_nothing(name, mask, junk):
    layer = QUANTIZERS[name]()
    layer.build((None, 3, DIM))
    before = weights(layer)
    mask = np.array(mask).reshape(2, 3)
    x = draw(2, 3, DIM)
    results = []
    for filler in (x, np.full_like(x, junk)):
        restore(layer, before)
        results.append((losses_of(layer, np.where(mask[..., None], x, filler), mask), weights(layer)))
    np.testing.assert_array_equal(results[1][0], results[0][0])
    assert_same_weights(*(values for _, values in results))
    assert numpy(layer.code_counts).sum() == mask.sum() * books(layer)


def test_a_mask_leaves_the_losses_of_the_kept_vectors(layer):
    before = weights(layer)
    x = draw(2, 5, DIM)
    mask = np.array([[1, 1, 0, 1, 0], [0, 1, 0, 0, 0]], bool)
    masked = losses_of(layer, x, mask)
    restore(layer, before)
    np.testing.assert_allclose(masked, losses_of(layer, x[mask]), rtol=1e-5)


def test_a_mask_of_fewer_axes_covers_the_rest(layer):
    layer(draw(2, 3, 5, DIM), mask=ops.convert_to_tensor([[True, False, True], [False, False, True]]), training=True)
    assert numpy(layer.code_counts).sum() == 3 * 5 * books(layer)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_vectors_that_are_not_finite_never_reach_the_state(layer, bad):
    x = draw(6, DIM)
    layer(x, training=True)
    layer.reset_code_counts()
    before = weights(layer)
    layer(np.full_like(x, bad), training=True)
    after = weights(layer)
    seeds = [path for path in before if "seed_generator" in path]
    assert_same_weights(*({k: v for k, v in w.items() if k not in seeds} for w in (before, after)))
    x[1, 2] = bad
    layer(x, training=True)
    assert numpy(layer.code_counts).sum() == 5 * books(layer)
    for path, value in weights(layer).items():
        assert np.isfinite(value).all(), path
    for loss in layer.losses:
        assert np.isfinite(numpy(loss))


def test_gradients_are_finite_where_a_vector_is_not(layer):
    x = draw(6, DIM)
    x[2] = np.nan
    by_inputs, by_weights = layer_gradients(layer, x, np.zeros_like(x))
    assert np.isfinite(by_inputs[[0, 1, 3, 4, 5]]).all()
    for gradient in by_weights:
        assert np.isfinite(gradient).all()


def test_trap_gradients_are_finite_at_zero(layer):
    """Where `ops.normalize` has none."""
    x = np.zeros((3, DIM), "float32")
    by_inputs, by_weights = layer_gradients(layer, x, np.ones_like(x))
    for gradient in (by_inputs, *by_weights):
        assert np.isfinite(gradient).all()


def test_trainable_false_freezes_everything(make):
    model = keras.Sequential([keras.Input((3, DIM)), layers.Dense(DIM), make(trainable=False)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = weights(model.layers[1])
    dense = weights(model.layers[0])
    model.fit(draw(8, 3, DIM), draw(8, 3, DIM), batch_size=4, verbose=0)
    assert_same_weights(before, weights(model.layers[1]))
    assert any((dense[path] != value).any() for path, value in weights(model.layers[0]).items())


def test_fit_trains_any_model_and_repeats_by_seed(make):
    def train():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((3, 5))
        quantizer = make()
        model = keras.Model(inputs, layers.Dense(2)(quantizer(layers.Dense(DIM)(inputs))))
        model.compile("adam", "mse")
        before = weights(quantizer)
        # Batches of 4, 4 and 2.
        history = model.fit(draw(10, 3, 5), draw(10, 3, 2), batch_size=4, epochs=2, verbose=0, shuffle=False)
        changed = {path for path, value in weights(quantizer).items() if (value != before[path]).any()}
        assert any("code_counts" in path for path in changed)
        if hasattr(quantizer, "codebook") and quantizer.variables[0].shape == quantizer.codebook.shape:
            assert quantizer.variables[0].path in changed
        assert numpy(quantizer.code_counts).sum() == 2 * 10 * 3 * books(quantizer)
        return history.history["loss"], [numpy(variable) for variable in model.variables]

    (losses, first), (again, second) = train(), train()
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(losses, again)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sequential_functional_and_subclassed_models_agree(make):
    quantizer = make()
    sequential = keras.Sequential([keras.Input((3, DIM)), quantizer])
    inputs = keras.Input((3, DIM))
    functional = keras.Model(inputs, quantizer(inputs, return_indices=True))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer

        def call(self, inputs):
            return self.quantizer(inputs, return_indices=True)

    x = draw(7, 3, DIM)
    # Batches of 4 and 3: an unknown batch size.
    quantized, indices = functional.predict(x, batch_size=4, verbose=0)
    np.testing.assert_array_equal(sequential.predict(x, batch_size=4, verbose=0), quantized)
    for one, other in zip(Subclassed().predict(x, batch_size=4, verbose=0), (quantized, indices), strict=True):
        np.testing.assert_array_equal(one, other)
    assert indices.dtype == "int32"
    np.testing.assert_array_equal(numpy(quantizer.encode(x)), indices)


def test_trap_a_layer_called_without_indices_first_still_gives_them_to_a_functional_model(make):
    """Keras 3.15 takes the number of outputs of a layer's first call for that of all."""
    inputs = keras.Input((3, DIM))
    quantizer = make()
    keras.Model(inputs, quantizer(inputs))
    codes = keras.Model(inputs, quantizer(inputs, return_indices=True)[1])
    x = draw(2, 3, DIM)
    np.testing.assert_array_equal(codes.predict(x, verbose=0), numpy(quantizer.encode(x)))


def test_symbolic_outputs_are_described(layer):
    x = keras.KerasTensor((None, 3, DIM))
    quantized, indices = layer(x, return_indices=True)
    assert quantized.shape == (None, 3, DIM)
    assert quantized.dtype == "float32"
    assert indices.shape[:2] == (None, 3)
    assert indices.dtype == "int32"
    assert layer.compute_output_shape((None, 3, DIM)) == (None, 3, DIM)


def test_saving_keeps_weights_indices_and_outputs(make, tmp_path):
    inputs = keras.Input((3, DIM))
    quantizer = make()
    model = keras.Model(inputs, quantizer(inputs, return_indices=True))
    x = draw(6, 3, DIM)
    quantizer(x, training=True)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded.predict(x, verbose=0), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def test_the_config_comes_back(make):
    layer = make(name="mine", dtype="mixed_bfloat16")
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert again.name == "mine"
    assert again.compute_dtype == "bfloat16"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16"])
def test_low_precision_policies(make, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((3, DIM))
    quantizer = make()
    model = keras.Model(inputs, layers.Dense(1)(quantizer(layers.Dense(DIM)(inputs))))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(draw(4, 3, DIM), draw(4, 3, 1), batch_size=4, verbose=0)
    quantized = quantizer(draw(4, 3, DIM))
    assert keras.backend.standardize_dtype(quantized.dtype) == quantizer.compute_dtype
    np.testing.assert_array_equal(
        numpy(ops.cast(quantizer.decode(quantizer.encode(draw(4, 3, DIM))), "float32")),
        numpy(ops.cast(quantized, "float32")),
    )
    for variable in quantizer.variables:
        assert keras.backend.standardize_dtype(variable.dtype) in ("float32", "int32", "uint32", "int64")


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="TorchInductor compiles for minutes on a small machine")
def test_jit_compile_changes_nothing(make, name):
    losses = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3, DIM)), layers.Dense(DIM), make()])
        model.compile("sgd", "mse", jit_compile=jit_compile)
        # More vectors than codes: two dead codes that move onto one vector are a tie, which rounding decides.
        losses.append(model.fit(draw(8, 3, DIM), draw(8, 3, DIM), epochs=3, verbose=0).history["loss"])
    rtol = 1e-4
    if keras.backend.backend() == "tensorflow" and name in DRAW_STATE | DRAW_OUTPUTS:
        # Equal seeds draw other numbers when compiled; the first step hardly depends on them yet.
        losses, rtol = [history[:1] for history in losses], 0.1
    np.testing.assert_allclose(losses[0], losses[1], rtol=rtol)


@pytest.mark.parametrize("shape", [(), (DIM,), (3, None)])
def test_shapes_without_vectors_are_named(make, shape):
    with pytest.raises(ValueError, match=r"rank 2 or more.*Received: input_shape"):
        make().build(shape)


@pytest.mark.parametrize("shape", [(), (DIM,)])
def test_inputs_without_vectors_are_named(make, shape):
    with pytest.raises(ValueError, match=r"rank 2 or more.*Received: input_shape"):
        make()(np.zeros(shape, "float32"))


def test_another_last_axis_is_an_error(layer):
    with pytest.raises(ValueError, match=str(DIM + 1)):
        layer(draw(3, DIM + 1))


def test_trap_keras_reserves_the_name_quantize(layer):
    assert type(layer).quantize is keras.Layer.quantize
    assert isinstance(layer, keras_vqvae.Quantizer)


def test_trap_the_default_compute_mask_masks_the_first_output_only(layer):
    masked = layers.Masking()(draw(2, 3, DIM))
    outputs = layer(masked, return_indices=True)
    seen = []

    class Spy(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None):
            seen.append(mask)
            return inputs

    for output in outputs:
        Spy()(output)
    assert len(seen) == 2
    assert all(mask is not None and tuple(mask.shape) == (2, 3) for mask in seen)
