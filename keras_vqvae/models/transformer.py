"""The Transformer of the priors."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.seeded_layer import SeededLayer
from keras_vqvae.types import Sizes, Tensor

NEVER = -1e9
"""Logit of a code that is never drawn. Not minus infinity, because guidance subtracts logits."""


class TransformerBlock(keras.Layer):
    """A pre-norm Transformer block: attention, then a perceptron with four times the width, both residual."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float, seed: int | None, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.num_heads = num_heads
        self.attention_norm = layers.LayerNormalization(dtype=policy, name="attention_norm")
        self.queries_keys_values = layers.Dense(3 * hidden_dim, dtype=policy, name="queries_keys_values")
        self.attention_output = layers.Dense(hidden_dim, dtype=policy, name="attention_output")
        self.mlp_norm = layers.LayerNormalization(dtype=policy, name="mlp_norm")
        self.mlp_hidden = layers.Dense(4 * hidden_dim, activation="gelu", dtype=policy, name="mlp_hidden")
        self.mlp_output = layers.Dense(hidden_dim, dtype=policy, name="mlp_output")
        self.dropout = layers.Dropout(dropout, seed=seed, dtype=policy, name="dropout")

    def build(self, input_shape: Sizes) -> None:
        for layer in (self.attention_norm, self.queries_keys_values, self.attention_output, self.mlp_norm):
            layer.build(input_shape)
        self.mlp_hidden.build(input_shape)
        self.mlp_output.build((*input_shape[:-1], 4 * input_shape[-1]))

    def call(self, x: Tensor, causal: bool = False, training: bool | None = None) -> Tensor:
        queries, keys, values = self._heads(x)
        return self._add(x, ops.dot_product_attention(queries, keys, values, is_causal=causal), training)

    def step(self, x: Tensor, cache: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output at one position, `[batch, 1, H]`, and the updated cache.

        The cache has the keys and values of the positions so far, `[2, batch, L, heads, H / heads]`.
        """
        queries, keys, values = self._heads(x)
        cache = ops.slice_update(cache, (0, 0, position, 0, 0), ops.stack([keys, values]))
        seen = ops.arange(cache.shape[2]) <= position
        attended = ops.dot_product_attention(queries, cache[0], cache[1], mask=ops.reshape(seen, (1, 1, 1, -1)))
        return self._add(x, attended, training=False), cache

    def _heads(self, x: Tensor) -> list[Tensor]:
        # `[batch, T, 3 H]` -> three of `[batch, T, heads, H / heads]`
        _, length, dim = x.shape
        projected = self.queries_keys_values(self.attention_norm(x))
        projected = ops.reshape(projected, (-1, length, 3, self.num_heads, dim // self.num_heads))
        return ops.unstack(projected, 3, axis=2)

    def _add(self, x: Tensor, attended: Tensor, training: bool | None) -> Tensor:
        attended = ops.reshape(attended, (-1, *x.shape[1:]))
        x = x + self.dropout(self.attention_output(attended), training=training)
        change = self.mlp_output(self.mlp_hidden(self.mlp_norm(x)))
        return x + self.dropout(change, training=training)


class CodeTransformer(SeededLayer):
    """Maps codes to the logits of codes. Every position attends to all positions.

    The code `num_embeddings` means "no code": a code to fill in, or the start of a sequence. The class `num_classes`
    means "no class". The code at position `i` belongs to the codebook `i % num_codebooks`, as in a residual.
    """

    def __init__(
        self,
        codebook_sizes: tuple[int, ...],
        length: int,
        num_classes: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        dropout: float,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.codebook_sizes, self.length = codebook_sizes, length
        self.num_embeddings, self.num_codebooks = max(codebook_sizes), len(codebook_sizes)
        self.num_classes, self.num_heads, self.hidden_dim, self.seed = num_classes, num_heads, hidden_dim, seed
        self.dropout = layers.Dropout(dropout, seed=self.seed_of(1), dtype=self.dtype_policy, name="dropout")
        self.blocks = self.make_blocks("block", num_layers, first=2)
        self.norm = layers.LayerNormalization(dtype=self.dtype_policy, name="norm")

    @property
    def num_positions(self) -> int:
        """Number of positions that the blocks process."""
        return self.length

    def seed_of(self, part: int) -> int | None:
        """The dropout seed of part number `part`. Each part has its own, or all would drop the same elements."""
        return None if self.seed is None else self.seed + part

    def make_blocks(self, name: str, count: int, first: int) -> list[TransformerBlock]:
        """Returns `count` blocks, which are the parts number `first` and following."""
        sizes = self.hidden_dim, self.num_heads, self.dropout.rate
        return [
            TransformerBlock(*sizes, seed=self.seed_of(first + i), dtype=self.dtype_policy, name=f"{name}_{i}")
            for i in range(count)
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.codes = self.add_table("codes", self.num_codebooks * self.num_embeddings + 1)
        self.positions = self.add_table("positions", self.num_positions)
        self.classes = self.add_table("classes", self.num_classes + 1)
        self.head = self.add_weight(
            (self.num_codebooks, self.hidden_dim, self.num_embeddings), "glorot_uniform", name="head"
        )
        self.bias = self.add_weight((self.num_codebooks, self.num_embeddings), "zeros", name="bias")
        for layer in (*self.blocks, self.norm):
            layer.build((None, None, self.hidden_dim))

    def add_table(self, name: str, size: int) -> keras.Variable:
        return self.add_weight((size, self.hidden_dim), keras.initializers.RandomNormal(stddev=0.02), name=name)

    def embed(self, codes: Tensor, codebooks: Tensor) -> Tensor:
        """Returns the embeddings `[..., H]` of codes `[...]`, which belong to the given codebooks."""
        none = self.num_codebooks * self.num_embeddings
        rows = ops.where(codes == self.num_embeddings, none, codes + self.num_embeddings * codebooks)
        return backend.gather_rows(ops.convert_to_tensor(self.codes), rows)

    def locate(self, x: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Adds the embeddings of positions and of the samples' classes to `[batch, T, H]`."""
        classes = backend.gather_rows(ops.convert_to_tensor(self.classes), labels)
        return x + backend.gather_rows(ops.convert_to_tensor(self.positions), positions) + ops.expand_dims(classes, 1)

    def call(self, codes: Tensor, labels: Tensor, training: bool | None = None) -> Tensor:
        """Returns float32 logits `[batch, L, K]` for codes `[batch, L]` and classes `[batch]`."""
        positions = ops.arange(self.length)
        x = self.locate(self.embed(codes, positions % self.num_codebooks), positions, labels)
        x = self.dropout(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Turns outputs of the blocks, in the order of the codes, into float32 logits `[batch, L, K]`."""
        x = ops.reshape(self.norm(x), (-1, self.length // self.num_codebooks, self.num_codebooks, self.hidden_dim))
        logits = self.within_codebooks(ops.einsum("btqh,qhk->btqk", x, self.head) + self.bias, self.outside)
        return ops.reshape(logits, (-1, self.length, self.num_embeddings))

    @property
    def outside(self) -> np.ndarray | None:
        """Booleans `[num_codebooks, num_embeddings]`: True for codes that a codebook lacks. `None` if all have `K`."""
        sizes = np.array(self.codebook_sizes)[:, None]
        return np.arange(self.num_embeddings) >= sizes if len(set(self.codebook_sizes)) > 1 else None

    def within_codebooks(self, logits: Tensor, outside: Tensor | None) -> Tensor:
        """Returns float32 logits, with `NEVER` for the codes that `outside` marks."""
        logits = ops.cast(logits, "float32")
        return logits if outside is None else ops.where(outside, NEVER, logits)
