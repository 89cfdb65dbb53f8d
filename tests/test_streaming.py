"""Tests causal models and their streams: chunks of a sequence must give the same results as the whole."""

import re
import weakref

import helpers
import hypothesis
import keras
import numpy as np
import pytest
from helpers import draw, numpy
from hypothesis import strategies
from keras import layers

import keras_vqvae
from keras_vqvae.models import streaming

STRIDE = 4
SIZES = {"embedding_dim": 4, "filters": (4, 6), "num_residual_blocks": 1}
STEPS = 19
"""Steps of a sequence: four vectors, and three more samples."""


def vector(**keywords):
    return keras_vqvae.VectorQuantizer(16, seed=1, **keywords)


QUANTIZERS = {
    "vector": vector,
    "residual": lambda: keras_vqvae.ResidualQuantizer(vector(), 2),
    "grouped": lambda: keras_vqvae.GroupedQuantizer(keras_vqvae.ResidualQuantizer(vector(), 2), 2),
    "projected": lambda: keras_vqvae.ProjectedQuantizer(keras_vqvae.FiniteScalarQuantizer((4, 4, 3)), 3),
}


def make(quantizer=None, steps=None, causal=True, **keywords):
    keywords = {**SIZES, "causal": causal, **keywords}
    return keras_vqvae.VQVAE(
        keras_vqvae.build_conv_encoder((steps, 1), **keywords),
        quantizer or vector(),
        keras_vqvae.build_conv_decoder((steps, 1), **keywords),
    )


def spread(model):
    """Sets the codes to encoder outputs, so that many codes are in use."""
    first = getattr(model.quantizer, "quantizers", [model.quantizer])[0]
    first.set_codebook(numpy(model.encoder(draw(1, 16 * STRIDE, 1, seed=1)))[0])
    return model


def own():
    """Returns a causal model of layers that users are likely to choose."""
    samples, latents = keras.Input((None, 2)), keras.Input((None, 4))
    x = layers.Conv1D(6, 3, dilation_rate=2, padding="causal", activation="relu")(layers.Rescaling(2.0)(samples))
    x = layers.Concatenate()([x, layers.Dense(3)(samples)])
    x = layers.Conv1D(5, 3, strides=3)(layers.LayerNormalization()(x))
    x = keras.Sequential([layers.ZeroPadding1D((2, 0)), layers.ReLU(), layers.Conv1D(4, 4, strides=2)])(x)
    y = layers.Conv1DTranspose(5, 3, strides=3)(layers.Conv1D(4, 2, padding="causal")(latents))
    y = layers.Conv1DTranspose(2, 5, strides=2)(layers.ZeroPadding1D((3, 0))(y))
    decoder = keras.Model(latents, layers.Cropping1D((6, 3))(y))
    return keras_vqvae.VQVAE(keras.Model(samples, x), keras_vqvae.VectorQuantizer(16, seed=1), decoder)


def parts(array, cuts):
    return np.split(array, sorted(cuts), axis=1)


def joined(stream):
    return np.concatenate(list(stream), axis=1)


def assert_equal_to_the_whole(model, x, cuts):
    codes = model.encode(x, verbose=0)
    np.testing.assert_array_equal(joined(model.encode_stream(parts(x, cuts))), codes)
    found = joined(model.decode_stream(parts(codes, [cut // model.latency for cut in cuts])))
    np.testing.assert_allclose(found, model.decode(codes, verbose=0), atol=1e-6)
    # Chained streams: each chunk is decoded as soon as it is encoded.
    found = joined(model.decode_stream(model.encode_stream(parts(x, cuts))))
    np.testing.assert_allclose(found, model.decode(codes, verbose=0), atol=1e-6)


@pytest.mark.each_backend(slow=True)
def test_streams_in_any_parts_equal_the_whole():
    model, x = spread(make(keras_vqvae.ResidualQuantizer(vector(), 2))), draw(2, STEPS, 1)
    assert len(np.unique(model.encode(x, verbose=0)[..., 0])) > 4

    # JAX and TensorFlow compile a program for each length.
    @hypothesis.settings(max_examples=20 if keras.backend.backend() == "torch" else 4)
    @hypothesis.given(strategies.lists(strategies.integers(0, STEPS), max_size=8))
    def check(cuts):
        assert_equal_to_the_whole(model, x, cuts)

    check()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_streams_of_every_quantizer_equal_the_whole(kind):
    model = make(QUANTIZERS[kind]())
    for steps in (28, 29, 3):
        x = draw(2, steps, 1)
        for cuts in ([1], range(0, steps, 3), [0, 0, steps // 2, steps]):
            assert_equal_to_the_whole(model, x, cuts)


def test_streams_of_custom_networks_equal_the_whole():
    model = own()
    # Samples that do not fill a stride of 6 are dropped, both by the whole and by the stream.
    for steps in (48, 47):
        for cuts in ([], [7], range(steps), [20, 21, 40]):
            assert_equal_to_the_whole(model, draw(2, steps, 2), cuts)
    assert model.latency == 6


def test_a_model_of_fixed_size_can_be_streamed():
    encoder = make(steps=30).encoder
    model = keras_vqvae.VQVAE(encoder, vector(), make().decoder)
    x = draw(2, 30, 1)
    np.testing.assert_array_equal(joined(model.encode_stream(parts(x, [11]))), model.encode(x, verbose=0))


def test_layers_without_strides_can_be_streamed():
    model = keras_vqvae.VQVAE(layers.Dense(3), vector(), layers.Dense(1))
    x = draw(2, 9, 1)
    model(x)
    assert_equal_to_the_whole(model, x, [3, 4])
    assert (model.latency, model.receptive_field) == (1, 1)


def positive(model):
    """Makes all weights positive, so that every input has an influence."""
    for variable in (*model.encoder.trainable_variables, *model.decoder.trainable_variables):
        variable.assign(0.1 + keras.ops.abs(variable))
    return model


def influences(function, x):
    """Returns booleans `[steps of x, steps of the output]`: whether an output step depends on a step of `x`."""
    steps = x.shape[1]
    changed = np.concatenate([x, x + np.eye(steps)[:, :, None]]).astype("float32")
    base, *outputs = numpy(function(changed))
    return np.abs(np.stack(outputs) - base).max(-1) > 1e-5 * np.abs(base).max()


@pytest.mark.parametrize(
    "make",
    [make, own, lambda: make(filters=(4,), num_residual_blocks=0)],
    ids=["two strides", "custom layers", "one stride"],
)
def test_latency_and_receptive_field_match_perturbed_inputs(make):
    model = positive(make())
    channels = model.encoder.input_shape[-1]
    x = np.ones((1, 20 * model.latency, channels), "float32")
    of_vectors = influences(model.encoder, x)
    found = influences(lambda x: model.decoder(model.encoder(x)), x)
    assert found.shape[1] == x.shape[1]
    fields = []
    for t in range(x.shape[1]):
        # No output depends on inputs after its own frame.
        (samples,) = np.nonzero(found[:, t])
        assert samples[-1] == t // model.latency * model.latency + model.latency - 1
        fields.append(samples[-1] - samples[0] + 1)
    assert max(fields) == model.receptive_field
    for t in range(of_vectors.shape[1]):
        assert np.nonzero(of_vectors[:, t])[0][-1] == (t + 1) * model.latency - 1
    # If samples are fed one by one, an index comes every `latency` samples, and its reconstruction with it.
    sound = model.decode_stream(model.encode_stream(parts(x, range(1, x.shape[1]))))
    steps = [part.shape[1] for part in sound]
    assert steps == [model.latency * (i % model.latency == model.latency - 1) for i in range(x.shape[1])]


@pytest.mark.each_backend
def test_indices_of_a_prefix_are_the_prefix_of_the_indices():
    model, x = spread(make()), draw(2, 40, 1)
    codes = model.encode(x, verbose=0)
    assert len(np.unique(codes)) > 4
    sound = model.decode(codes, verbose=0)
    for steps in range(4, 40, 12):
        np.testing.assert_array_equal(model.encode(x[:, :steps], verbose=0), codes[:, : steps // 4])
        np.testing.assert_allclose(model.decode(codes[:, : steps // 4], verbose=0), sound[:, :steps], atol=1e-6)


def test_memory_and_work_of_a_stream_do_not_grow(monkeypatch):
    model, sizes, alive = make(), [], []

    def counted(step, inputs):
        sizes.append([inputs[name].shape for name in sorted(inputs)])
        return real(step, inputs)

    real = streaming.predict_on_batch
    monkeypatch.setattr(streaming, "predict_on_batch", counted)

    def chunks():
        for _ in range(30):
            # Earlier chunks are freed, up to one in the generator's own variables.
            assert sum(ref() is not None for ref in alive) <= 1
            chunk = draw(1, 9 * STRIDE, 1)
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk

    assert joined(model.encode_stream(chunks())).shape == (1, 270)
    assert sizes == 30 * sizes[:1]
    # A large chunk is processed in blocks.
    sizes.clear()
    many = 4 * streaming.MAX_BLOCK
    assert joined(model.encode_stream([draw(1, many * STRIDE, 1)])).shape == (1, many)
    assert max(shapes[0][1] for shapes in sizes) == streaming.MAX_BLOCK * STRIDE


def test_chunks_of_many_lengths_need_few_programs(monkeypatch):
    model, lengths = make(), set()

    def noted(step, inputs):
        lengths.add(inputs["samples"].shape[1])
        return real(step, inputs)

    real = streaming.predict_on_batch
    monkeypatch.setattr(streaming, "predict_on_batch", noted)
    x = draw(2, 40 * 41 // 2 * STRIDE, 1)
    cuts = np.cumsum(np.random.default_rng(0).permutation(40)) * STRIDE
    np.testing.assert_array_equal(joined(model.encode_stream(parts(x, cuts))), model.encode(x, verbose=0))
    assert len(lengths) == streaming.MAX_SIZES


def test_streams_follow_the_training():
    model, x = make(vector(ema_decay=0.9)), draw(8, 40, 1)
    before = joined(model.encode_stream([x]))
    helpers.compiled(model, keras.optimizers.Adam(0.1), traced=False)
    for _ in range(5):
        model.train_on_batch(x)
    trained = helpers.weights(model)
    after = joined(model.encode_stream([x]))
    assert (before != after).any()
    np.testing.assert_array_equal(after, model.encode(x, verbose=0))
    helpers.assert_same_weights(trained, helpers.weights(model))


def test_a_model_that_was_streamed_is_saved(tmp_path):
    model, x = make(), draw(2, 40, 1)
    codes = joined(model.encode_stream([x]))
    joined(model.decode_stream([codes]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(x, verbose=0), codes)
    np.testing.assert_array_equal(joined(loaded.encode_stream(parts(x, [7]))), codes)
    assert (loaded.latency, loaded.receptive_field) == (model.latency, model.receptive_field)


def test_streams_do_not_share_their_states():
    model, x = make(), draw(2, 40, 1)
    one, other = (model.encode_stream(parts(x[i : i + 1], range(4, 40, 4))) for i in range(2))
    found = [np.concatenate(pair) for pair in zip(one, other, strict=True)]
    np.testing.assert_array_equal(np.concatenate(found, axis=1), model.encode(x, verbose=0))


def test_streams_of_only_the_first_stages_are_decoded():
    model = make(keras_vqvae.ResidualQuantizer(vector(), 2))
    codes = model.encode(draw(2, 40, 1), verbose=0)[..., :1]
    np.testing.assert_allclose(
        joined(model.decode_stream(parts(codes, [3]))), model.decode(codes, verbose=0), atol=1e-6
    )


def test_streams_without_samples_work():
    model = make()
    assert list(model.encode_stream([])) == []
    empty = np.zeros((3, 0, 1), "float32")
    (codes,) = model.encode_stream([empty])
    assert (codes.shape, codes.dtype) == ((3, 0), "int32")
    (sound,) = model.decode_stream([codes])
    assert (sound.shape, sound.dtype) == ((3, 0, 1), "float32")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_streams_work_in_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model, x = make(), draw(2, 40, 1)
    codes = model.encode(x, verbose=0)
    np.testing.assert_array_equal(joined(model.encode_stream(parts(x, [5, 9]))), codes)
    found = joined(model.decode_stream(parts(codes, [3, 7]))).astype("float32")
    np.testing.assert_allclose(found, model.decode(codes, verbose=0).astype("float32"), atol=1e-2)
    # States are float32, because not every backend has NumPy arrays of smaller dtypes.
    _, *states = sorted(model.tokenizer_step.input)
    assert {model.tokenizer_step.input[name].dtype for name in states} == {"float32"}


@pytest.mark.each_backend(slow=True)
# These warnings come from the exporters.
@pytest.mark.filterwarnings("ignore")
def test_a_step_is_exported_with_its_state(tmp_path):
    """Exports ONNX on PyTorch, which has no SavedModel, and SavedModel elsewhere: JAX's ONNX has a fixed batch size."""
    model, x = make(), draw(2, 40, 1)
    codes, torch = model.encode(x, verbose=0), keras.backend.backend() == "torch"
    sound = model.decode(codes, verbose=0)
    for step, inputs, outputs in ((model.tokenizer_step, x, codes), (model.detokenizer_step, codes, sound)):
        source, *states = sorted(step.input)
        size = inputs.shape[1] // 5
        # A fixed number of steps: on PyTorch Keras would replace an unknown one by 1, which is less than a stride.
        chunk = keras.KerasTensor((None, size, *inputs.shape[2:]), inputs.dtype, name=source)
        path = str(tmp_path / f"{step.name}.onnx")
        signature = [{**step.input, source: chunk}]
        step.export(path, format="onnx" if torch else "tf_saved_model", verbose=False, input_signature=signature)
        run = onnx(path) if torch else saved_model(path)
        values, found = {name: np.zeros((2, *step.input[name].shape[1:]), "float32") for name in states}, []
        for part in np.split(inputs, 5, axis=1):
            output, *new = run({source: part, **values})
            values = dict(zip(states, new, strict=True))
            found.append(output)
        np.testing.assert_allclose(np.concatenate(found, axis=1), outputs, atol=1e-6)


def onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    # The outputs are in the order of their names.
    return lambda inputs: session.run(None, inputs)


def saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def run(inputs):
        outputs = loaded.serve({name: tf.constant(value) for name, value in inputs.items()})
        return [outputs[name].numpy() for name in sorted(outputs)]

    return run


def test_an_incomplete_stride_gives_one_more_vector():
    encoder = keras_vqvae.build_conv_encoder((None, 1), **{**SIZES, "filters": (2, 2, 2), "causal": True})
    assert [encoder(draw(1, steps, 1)).shape[1] for steps in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


REFUSED = {
    "same": [layers.Conv1D(4, 3, padding="same", name="culprit")],
    "unpadded": [layers.Conv1D(4, 3, name="culprit")],
    "padded too much": [layers.ZeroPadding1D((3, 0)), layers.Conv1D(4, 3, name="culprit")],
    "padded within": [layers.Dense(4), layers.ZeroPadding1D((0, 1), name="culprit")],
    "padded twice": [layers.ZeroPadding1D((1, 0)), layers.ZeroPadding1D((1, 0), name="culprit")],
    "strides": [layers.Conv1D(4, 4, strides=2, padding="causal", name="culprit")],
    "padded by both": [layers.ZeroPadding1D((1, 0)), layers.Conv1D(4, 3, padding="causal", name="culprit")],
    "recurrent": [layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="culprit")],
    "over time": [layers.LayerNormalization(axis=1, name="culprit")],
    "over groups": [layers.GroupNormalization(1, name="culprit")],
    "unknown": [layers.Lambda(lambda x: x, name="culprit")],
    "uncropped": [layers.Conv1DTranspose(4, 4, strides=2, name="culprit")],
    "cropped": [layers.Cropping1D((0, 2), name="culprit")],
}


REASONS = {
    "padded within": "only the input can be padded at its end",
    "padded twice": "it pads a sequence that is already padded",
    "uncropped": 'it needs padding="valid", ZeroPadding1D((1, 0)) in front of it and Cropping1D((2, 2)) after it',
    "cropped": "it must be Cropping1D((0, 0))",
    **dict.fromkeys(
        ("same", "unpadded", "padded too much", "strides", "padded by both"), "it needs ZeroPadding1D((2, 0))"
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_are_not_causal_are_named_in_errors(case):
    encoder = keras.Sequential([keras.Input((12, 4)), *REFUSED[case]])
    model = keras_vqvae.VQVAE(encoder, vector(), layers.Dense(4))
    with pytest.raises(
        ValueError, match=r"`encoder` must be causal .*`culprit`.*Received: encoder with a layer "
    ) as error:
        model.encode_stream([])
    unknown = "is not allowed: it is not one of the layers that are known to be causal. Received"
    assert REASONS.get(case, unknown) in str(error.value)


def test_a_decoder_without_cropping_is_an_error():
    latents = keras.Input((None, 4))
    decoder = keras.Model(latents, layers.Conv1DTranspose(1, 4, strides=2)(layers.ZeroPadding1D((1, 0))(latents)))
    model = keras_vqvae.VQVAE(make().encoder, vector(), decoder)
    with pytest.raises(ValueError, match="Cropping1D.*Received: decoder with a layer Functional"):
        model.decode_stream([])


def test_models_that_cannot_be_streamed_are_errors():
    for model in (make(causal=False), make(steps=30)):
        with pytest.raises(ValueError, match="must be causal for a stream.*Received: "):
            (model.encode_stream if model.encoder.input_shape[1] is None else model.decode_stream)([])
    grids = keras_vqvae.MultiScaleQuantizer(vector(), (2, 4))
    model = make(grids, steps=16)
    for use in (lambda: model.encode_stream([]), lambda: model.decode_stream([]), lambda: model.latency):
        with pytest.raises(ValueError, match="Received: quantizer=MultiScaleQuantizer"):
            use()
    flat = keras_vqvae.VQVAE(layers.Dense(3), vector(), layers.Dense(1))
    with pytest.raises(ValueError, match="must be built"):
        flat.encode_stream([])
    flat(draw(2, 5))
    with pytest.raises(
        ValueError,
        match=re.escape("`decoder` must return one, for a stream. Received: encoder inputs of ["),
    ):
        flat.encode_stream([])


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (np.zeros((2, 8, 1)), "such as the list `[x]` for one array `x`. Received: an array of shape (2, 8, 1)"),
        ([np.zeros((8, 1))], "arrays [batch, steps, 1]. Received: chunk of shape (8, 1)"),
        ([np.zeros((2, 8, 2))], "Received: chunk of shape (2, 8, 2)"),
        ([np.zeros((2, 8, 1)), np.zeros((3, 8, 1))], "Received: first chunk of 2 sequences, chunk of shape (3, 8, 1)"),
    ],
)
def test_chunks_of_wrong_shapes_are_named_in_errors(chunks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        list(make().encode_stream(chunks))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([np.zeros((2, 8, 2), "int32")], "arrays [batch, steps]. Received: chunk of shape (2, 8, 2)"),
        ([np.full((2, 8), 16)], "Received: chunks with [16]"),
        ([np.zeros((2, 8))], "`chunks` must be integers"),
    ],
)
def test_invalid_chunks_of_indices_are_errors(chunks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        list(make().decode_stream(chunks))
