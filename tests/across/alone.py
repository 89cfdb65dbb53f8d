"""Uses models in one of two PyTorch processes while the other waits: `python alone.py RANK STORE FOLDER`."""

import datetime
import pathlib
import sys

import keras
import numpy as np
from matplotlib.figure import Figure
from torch import distributed

import keras_vqvae

rank, store, folder = sys.argv[1:]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=int(rank), world_size=2, timeout=datetime.timedelta(seconds=20)
)
if rank == "1":
    # Wait until the test closes stdin.
    sys.stdin.read()
    sys.exit()

make_predict_function = keras.Model.make_predict_function


def make_predict_function_of_all(model, force=False):
    """Waits for all processes, as Keras 3.16 does through `DistributedDataParallel`."""
    if model.predict_function is None or force:
        distributed.barrier()
    return make_predict_function(model, force)


keras.Model.make_predict_function = make_predict_function_of_all

x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
encoder, decoder = keras_vqvae.build(4, embedding_dim=2, encoder_sizes=(4,), decoder_sizes=(4,))
model = keras_vqvae.VQVAE(encoder, keras_vqvae.VectorQuantizer(5, seed=0), decoder)
model.adapt(x, verbose=0)
codes = model.encode(x, verbose=0)
np.testing.assert_array_equal(codes, model.tokenizer(x).numpy())
decoded = model.decode(codes, batch_size=16, verbose=0)
np.testing.assert_allclose(decoded, model.detokenizer(codes).detach().numpy(), atol=1e-6)
for prior in (
    keras_vqvae.AutoregressivePrior(5, (), num_layers=1, num_heads=1, hidden_dim=4),
    keras_vqvae.MaskedPrior(5, (), num_layers=1, num_heads=1, hidden_dim=4),
):
    drawn = prior.generate(6, seed=0, batch_size=4, verbose=0)
    np.testing.assert_array_equal(model.sample(prior, 6, seed=0, verbose=0), model.decode(drawn, verbose=0))
# One model is built only by its first inputs, the other has no trainable weights.
unbuilt = keras_vqvae.VQVAE(keras.layers.Dense(2), keras_vqvae.FiniteScalarQuantizer((3, 3)), keras.layers.Dense(4))
assert unbuilt.encode(x, verbose=0).shape == (40,)
model.trainable = False
model.compile()
np.testing.assert_array_equal(model.encode(x, verbose=0), codes)


def predicted(model):
    model.predict(x, verbose=0)
    return Figure()


writer = keras_vqvae.FigureWriter(folder, {"predicted": predicted})
writer.set_model(model)
writer.on_train_begin()
writer.on_epoch_end(0)
writer.on_train_end()
assert pathlib.Path(folder, "predicted_0001.png").exists()
