"""Tests that every argument of every quantizer has an effect, also within each wrapper, or is refused by name."""

import functools
import inspect
import re
import types

import keras
import numpy as np
import pytest
from helpers import draw, numpy
from keras import layers

import keras_vqvae

# The code that handles arguments is the same on every backend, and each case would compile other programs.
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="builds hundreds of models: only on the quickest backend"
)

DIM = 4
SHAPE = (3, DIM)
EMA = {"ema_decay": 0.9}
# For each class: its arguments, and another value of each argument with the other changes that it needs.
VECTOR = {
    "num_embeddings": 9,
    "embedding_dim": 5,
    "commitment_weight": 0.5,
    "codebook_weight": 0.5,
    "ema_decay": 0.9,
    "distance": "cosine",
    "estimator": "rotation",
    "dead_code_threshold": 0.9,
    "embeddings_initializer": "ones",
    "embeddings_regularizer": keras.regularizers.L2(0.1),
    "embeddings_constraint": keras.constraints.UnitNorm(-1),
    "assignment_regularizer": keras_vqvae.AssignmentEntropy(),
    "seed": 2,
}
BITS = {
    "num_bits": 3,
    "commitment_weight": 0.5,
    "entropy_weight": 0.3,
    "diversity_weight": 0.5,
    "temperature": 1.0,
}
CASES = {
    "optimizer": (keras_vqvae.VectorQuantizer, {"num_embeddings": 8, "seed": 1}, VECTOR),
    "ema": (keras_vqvae.VectorQuantizer, {"num_embeddings": 8, "seed": 1, **EMA}, VECTOR | {"ema_decay": 0.1}),
    "diveq": (keras_vqvae.VectorQuantizer, {"num_embeddings": 8, "seed": 1, "estimator": "diveq"}, VECTOR),
    "sim": (
        keras_vqvae.SimVectorQuantizer,
        {"num_embeddings": 8, "seed": 1},
        VECTOR,
    ),
    "ibq": (
        keras_vqvae.IndexBackpropagationQuantizer,
        {"num_embeddings": 8, "seed": 1},
        {name: VECTOR[name] for name in VECTOR if name.startswith(("num", "embed", "seed"))}
        | {"entropy_weight": 0.5, "diversity_weight": 0.5, "temperature": 1.0}
        | {"distance": "cosine", "estimator": "rotation"},
    ),
    "gumbel": (
        keras_vqvae.GumbelQuantizer,
        {"num_embeddings": 8, "seed": 1},
        {name: VECTOR[name] for name in VECTOR if name.startswith(("num", "embed", "seed", "distance"))}
        | {"temperature": 0.5, "kl_weight": 0.1, "estimator": "rotation"},
    ),
    "fsq": (
        keras_vqvae.FiniteScalarQuantizer,
        {"levels": (4,) * DIM},
        {"levels": (5,) * DIM, "symmetric": True, "noise": 0.5},
    ),
    "noise": (
        keras_vqvae.FiniteScalarQuantizer,
        {"levels": (4,) * DIM, "noise": 0.5, "seed": 1},
        {"levels": (5,) * DIM, "symmetric": True, "noise": 0.1, "seed": 2},
    ),
    "lfq": (keras_vqvae.LookupFreeQuantizer, {"num_bits": DIM}, BITS),
    "bsq": (keras_vqvae.BinarySphericalQuantizer, {"num_bits": DIM}, BITS),
    "residual": (
        keras_vqvae.ResidualQuantizer,
        {
            "quantizer": keras_vqvae.VectorQuantizer(8, seed=1, **EMA),
            "num_quantizers": 2,
            "quantizer_dropout": 0.5,
            "seed": 1,
        },
        {"num_quantizers": 3, "shared_codebook": True, "quantizer_dropout": 0.9, "beam_width": 3, "seed": 2},
    ),
    "grouped": (
        keras_vqvae.GroupedQuantizer,
        {
            "quantizer": keras_vqvae.VectorQuantizer(8, seed=1, **EMA),
            "num_groups": 2,
            "quantizer_dropout": 0.5,
            "seed": 1,
        },
        {"num_groups": 1, "quantizer_dropout": 0.9, "seed": 2},
    ),
    "projected": (
        keras_vqvae.ProjectedQuantizer,
        {"quantizer": keras_vqvae.VectorQuantizer(8, seed=1, **EMA), "dim": 3},
        {"dim": 2},
    ),
    "scales": (
        keras_vqvae.MultiScaleQuantizer,
        {"quantizer": keras_vqvae.VectorQuantizer(8, seed=1, **EMA), "scales": (2, 3)},
        {"scales": (1, 2), "shared_codebook": True, "convolution": True, "strides": (3, 1), "interpolation": "cubic"},
    ),
}
PLACES = {
    "alone": lambda quantizer: quantizer,
    "residual": lambda quantizer: keras_vqvae.ResidualQuantizer(quantizer, 2),
    "beam": lambda quantizer: keras_vqvae.ResidualQuantizer(quantizer, 2, beam_width=2),
    "grouped": lambda quantizer: keras_vqvae.GroupedQuantizer(quantizer, 1),
    "projected": lambda quantizer: keras_vqvae.ProjectedQuantizer(quantizer, DIM),
    "scales": lambda quantizer: keras_vqvae.MultiScaleQuantizer(quantizer, (1, 3)),
}
# Arguments of every Keras layer, and the quantizer of a wrapper.
ELSEWHERE = {"self", "kwargs", "quantizer"}


def observed(case, place, **changed):
    """Collects all observable results of two training steps and of inference, or the error that refuses the case."""
    kind, fixed, _ = CASES[case]
    keras.utils.set_random_seed(0)
    try:
        quantizer = PLACES[place](kind(**{**fixed, **changed}))
        model = keras.Sequential([keras.Input(SHAPE), layers.Dense(DIM), quantizer, layers.Dense(2)])
    except ValueError as error:
        return str(error)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x, y = draw(16, *SHAPE), draw(16, 3, 2, seed=1)
    found = [model.train_on_batch(x, y) for _ in range(2)]
    found += [numpy(part) for part in quantizer(model.layers[0](x), training=True, return_indices=True)]
    found += [numpy(quantizer(x)), *(numpy(variable) for variable in model.variables if "seed" not in variable.path)]
    return found


@functools.cache
def unchanged(case, place):
    return observed(case, place)


TRIPLES = [
    (case, name, place)
    for case, (kind, _, values) in CASES.items()
    for name in values
    for place in (["alone"] if case == "scales" else PLACES)
]


@pytest.mark.parametrize(("case", "name", "place"), TRIPLES)
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")
def test_every_argument_has_an_effect_or_is_refused(case, name, place):
    before = unchanged(case, place)
    if isinstance(before, str):
        pytest.skip("this combination is refused with any argument")
    after = observed(case, place, **{name: CASES[case][2][name]})
    if isinstance(after, str):
        assert f"`{name}`" in after or f"{name}=" in after, after
        return
    shapes = [[np.shape(value) for value in values] for values in (before, after)]
    assert shapes[0] != shapes[1] or any(
        (np.asarray(one) != np.asarray(other)).any() for one, other in zip(before, after, strict=True)
    ), f"{name} is ignored"


def test_every_argument_is_tried():
    for kind in {kind for kind, *_ in CASES.values()}:
        tried = set().union(*(values for other, _, values in CASES.values() if other is kind))
        assert set(inspect.signature(kind.__init__).parameters) - ELSEWHERE <= tried, kind
    kinds = {kind for kind, *_ in CASES.values()}
    every = {value for value in vars(keras_vqvae).values() if inspect.isclass(value)}
    bases = {keras_vqvae.Quantizer, keras_vqvae.CodebookQuantizer}
    assert kinds == {value for value in every if issubclass(value, keras_vqvae.Quantizer)} - bases


FEATURES = keras.Sequential([keras.Input((8,)), layers.Dense(2)])
REQUIRED = [(kind, {key: fixed[key] for key in list(fixed)[:2]}) for kind, fixed, _ in CASES.values()] + [
    (keras_vqvae.SpectralLoss, {}),
    (keras_vqvae.PerceptualLoss, {"features": FEATURES}),
    (keras_vqvae.LossSum, {"losses": [keras.losses.MeanSquaredError()]}),
    (keras_vqvae.CodebookPerplexity, {"num_embeddings": 8}),
    (keras_vqvae.CodebookUsage, {"num_embeddings": 8}),
    (keras_vqvae.AssignmentEntropy, {}),
    (keras_vqvae.build_encoder, {"input_size": 8}),
    (keras_vqvae.build_decoder, {"output_size": 8}),
    (keras_vqvae.build_conv_encoder, {"input_shape": (16, 16, 1)}),
    (keras_vqvae.build_conv_decoder, {"output_shape": (16, 16, 1)}),
    (keras_vqvae.build_conv_discriminator, {"input_shape": (32, 32, 1)}),
    (keras_vqvae.build_spectrogram_discriminator, {"input_shape": (4096, 1)}),
    (keras_vqvae.MaskedPrior, {"num_embeddings": 8, "shape": (4,)}),
    (keras_vqvae.AutoregressivePrior, {"num_embeddings": 8, "shape": (4,)}),
]


@pytest.mark.parametrize(("make", "required"), REQUIRED)
def test_defaults_are_as_documented(make, required):
    classes = [base for base in getattr(make, "__mro__", [make]) if base.__module__.startswith("keras_vqvae")]
    text = "".join(f"{inspect.getdoc(base)}\n".split("Call arguments:")[0] for base in classes)
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", text, re.M)
    # Others are passed on to a base class, whose docstring may have another default.
    own = inspect.signature(make).parameters.keys() - required.keys()
    found = {name: re.search(r"Defaults\s+to\s+`([^`]*)`", entry) for name, entry in entries if name in own}
    defaults = {name: eval(default[1], {}, vars(keras_vqvae)) for name, default in found.items() if default}
    configs = []
    for arguments in ({}, defaults):
        # Keras numbers the names of layers. Without this, the second object's names would have higher numbers.
        keras.utils.clear_session(free_memory=False)
        configs.append(keras.saving.serialize_keras_object(make(**required, **arguments)))
    assert configs[0] == configs[1]


KERAS_CHECKS = {"kwargs", "name", "dtype", "reduction", "activation", "kernel_constraint"} | {
    f"embeddings_{kind}" for kind in ("initializer", "regularizer", "constraint")
}


@pytest.mark.parametrize(("make", "required"), REQUIRED)
def test_arguments_of_a_wrong_type_are_named_in_errors(make, required):
    wrong = types.SimpleNamespace()
    unnamed = []
    for name in inspect.signature(make).parameters.keys() - KERAS_CHECKS:
        try:
            made = make(**{**required, name: wrong})
        except ValueError as error:
            if f"`{name}`" not in str(error) or "Received: " not in str(error):
                unnamed.append((name, str(error)))
        except Exception as error:
            unnamed.append((name, repr(error)))
        else:
            unnamed.append((name, made))
    assert unnamed == []


@pytest.mark.parametrize(("make", "required"), [case for case in REQUIRED if case[0].__name__.startswith("build_")])
def test_layer_names_are_the_same_in_every_model(make, required):
    """Otherwise weights could not be loaded by name into a model that was built later."""
    one, other = make(**required), make(**required)
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
