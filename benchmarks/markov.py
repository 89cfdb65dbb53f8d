"""Do priors learn a source of known entropy? Trains them on samples of a Markov chain.

KERAS_BACKEND=torch python -m benchmarks.markov --seeds 0 1 2

Each row is a prior with its sampling arguments. The columns are

- `nats`: the prior's cross-entropy per code on new samples of the chain. The first rows give it for equally likely
  codes, for the frequencies of single codes, and for the chain itself.
- `drawn`: the chain's cross-entropy per code on samples of the prior. A value above the chain's own means mistakes, and
  a value below it means too little variety.
- `pairs`: the total variation distance between the frequencies of pairs of adjacent codes in samples and in the chain.
  The chain's row gives it for as many samples of the chain.
"""

import argparse

import keras
import numpy as np

import keras_vqvae
from benchmarks import timing

STEPS = (1, 4, 8, 12, 24, 48)
CHOICE_TEMPERATURES = (0.0, 4.5, 1000.0)
"""The last one is so large that the order is random."""


class MarkovChain:
    """A Markov chain over codes. The first code is drawn from the stationary distribution."""

    def __init__(self, num_embeddings: int, seed: int):
        self.transitions = np.random.default_rng(seed).dirichlet(np.full(num_embeddings, 0.1), num_embeddings)
        self.stationary = np.linalg.matrix_power(self.transitions, 1000)[0]

    def sample(self, n: int, length: int, rng: np.random.Generator) -> np.ndarray:
        codes, probabilities = np.zeros((n, length), "int32"), np.tile(self.stationary, (n, 1))
        for position in range(length):
            sums = np.cumsum(probabilities, axis=1)
            codes[:, position] = (sums < sums[:, -1:] * rng.random((n, 1))).sum(1)
            probabilities = self.transitions[codes[:, position]]
        return codes

    def nats(self, codes: np.ndarray) -> float:
        """Returns the mean negative log-likelihood per code. Impossible transitions count as a probability of 1e-6."""
        first, others = self.stationary[codes[:, 0]], self.transitions[codes[:, :-1], codes[:, 1:]]
        return float(-np.log(np.maximum(np.column_stack([first, others]), 1e-6)).mean())

    def entropy(self, length: int) -> float:
        """Returns the entropy per code of samples of this length, in nats."""
        first, others = (
            -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1) for p in (self.stationary, self.transitions)
        )
        return float((first + (length - 1) * self.stationary @ others) / length)

    def pair_distance(self, codes: np.ndarray) -> float:
        """Returns the total variation distance between the frequencies of pairs of adjacent codes and the chain's."""
        count = len(self.stationary)
        pairs = np.bincount((codes[:, :-1] * count + codes[:, 1:]).ravel(), minlength=count**2)
        expected = self.stationary[:, None] * self.transitions
        return float(np.abs(pairs / pairs.sum() - expected.ravel()).sum() / 2)


def run(seed: int, arguments: argparse.Namespace) -> list[dict]:
    keras.utils.set_random_seed(seed)
    rng, chain, length = np.random.default_rng(seed), MarkovChain(arguments.codes, seed), arguments.length
    train, test, drawn = (chain.sample(n, length, rng) for n in (arguments.train, 4000, arguments.samples))
    rows = [
        {"seed": seed, "of": "equally likely codes", "nats": float(np.log(arguments.codes))},
        {"seed": seed, "of": "a code's frequency", "nats": float(-chain.stationary @ np.log(chain.stationary))},
        {
            **{"seed": seed, "of": "the chain", "nats": chain.entropy(length)},
            **{"drawn": chain.nats(drawn), "pairs": chain.pair_distance(drawn)},
        },
    ]
    ways = {
        keras_vqvae.AutoregressivePrior: [{}],
        keras_vqvae.MaskedPrior: [
            {"num_steps": steps, "choice_temperature": temperature}
            for temperature in CHOICE_TEMPERATURES
            for steps in STEPS
            if steps > 1 or not temperature
        ],
    }
    for kind, options in ways.items():
        prior = kind(arguments.codes, (length,), num_layers=2, hidden_dim=arguments.width, dropout=0.0, seed=seed)
        steps = arguments.epochs * -(-len(train) // 32)
        prior.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps)))
        prior.fit(train, batch_size=32, epochs=arguments.epochs, verbose=2)
        nats = prior.evaluate(test, batch_size=500, verbose=0, return_dict=True)["loss"]
        for way in options:
            codes = prior.generate(arguments.samples, seed=seed, verbose=0, **way)
            row = {"seed": seed, "of": kind.__name__, **way, "nats": nats}
            rows.append({**row, "drawn": chain.nats(codes), "pairs": chain.pair_distance(codes)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--train", type=int, default=16_000, help="samples to train on")
    parser.add_argument("--samples", type=int, default=2000, help="number of samples to draw")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    timing.report("markov", [row for seed in arguments.seeds for row in run(seed, arguments)])


if __name__ == "__main__":
    main()
