"""How long does a prior take to sample? Times it with and without a key-value cache, and in steps of many codes.

KERAS_BACKEND=jax python -m benchmarks.generation

The time does not depend on the weights, so the priors are untrained. Each row is a length; times are ms per batch.
"""

import argparse

import keras
import numpy as np
from keras import ops

import keras_vqvae
from benchmarks import timing
from keras_vqvae.models import sampling
from keras_vqvae.types import Tensor


class WithoutCache(keras_vqvae.AutoregressivePrior):
    """Computes all positions again for each new code."""

    def sample_codes(
        self, known: Tensor, labels: Tensor, bits: Tensor, guidance_scale: None, **restrictions: None
    ) -> Tensor:
        def step(position: Tensor, codes: Tensor) -> Tensor:
            logits = ops.take(self.logits(codes, labels, training=False), position, axis=1)
            logits = sampling.restrict(logits, **restrictions)
            drawn = sampling.draw(logits, ops.take(bits, position, axis=1))
            return ops.slice_update(codes, (0, position), ops.expand_dims(drawn, 1))

        return ops.fori_loop(0, self.length, step, ops.zeros_like(known))


def run(length: int, arguments: argparse.Namespace) -> dict:
    def build(kind: type[keras_vqvae.Prior]) -> keras_vqvae.Prior:
        sizes = {"num_layers": arguments.layers, "hidden_dim": arguments.width}
        return kind(arguments.codes, (length,), num_classes=10, seed=0, **sizes)

    keras.utils.set_random_seed(0)
    cached, naive, masked = map(build, (keras_vqvae.AutoregressivePrior, WithoutCache, keras_vqvae.MaskedPrior))
    naive.set_weights(cached.get_weights())
    draw = lambda prior, **options: prior.generate(arguments.batch, 0, seed=0, verbose=0, **options)  # noqa: E731
    agreement = float(np.mean(draw(cached) == draw(naive)))
    functions = {
        "cache": lambda: draw(cached),
        "cache, guidance": lambda: draw(cached, guidance_scale=2.0),
        "no cache": lambda: draw(naive),
        **{f"masked, {steps} steps": lambda steps=steps: draw(masked, num_steps=steps) for steps in (4, 8, 12, 24)},
    }
    times = timing.medians(functions, rounds=2, repeats=2)
    row = {name: f"{result['ms']:,.0f} ± {result['spread']:,.0f}" for name, result in times.items()}
    return {"backend": keras.backend.backend(), "length": length, "equal codes": agreement, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[49, 196])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    timing.report(f"generation_{keras.backend.backend()}", [run(length, arguments) for length in arguments.lengths])


if __name__ == "__main__":
    main()
