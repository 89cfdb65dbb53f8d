"""The Transformer of `AutoregressivePrior`."""

from typing import Any

from keras import ops

from keras_vqvae.models.transformer import CodeTransformer, TransformerBlock
from keras_vqvae.types import Tensor


class CausalCodeTransformer(CodeTransformer):
    """Maps codes to the logits of codes. Each code depends only on the codes before it.

    A position has one code of each codebook. The first Transformer processes the positions. Its input at a position is
    the sum of the embeddings of the codes of the previous position. If there are several codebooks, a second
    Transformer with half as many blocks processes the codes of each position. Its inputs are the output of the first
    one for the position, followed by the running sums of the embeddings of the position's codes.

    Reference:

    - [Lee et al., 2022, section 3.2](https://arxiv.org/abs/2203.01941)
    """

    def __init__(self, num_layers: int, **kwargs: Any):
        super().__init__(num_layers=num_layers, **kwargs)
        count = -(-num_layers // 2) if self.num_codebooks > 1 else 0
        self.stage_blocks = self.make_blocks("stage_block", count, first=2 + num_layers)

    @property
    def num_positions(self) -> int:
        return self.length // self.num_codebooks

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.stages = self.add_table("stages", self.num_codebooks)
        for block in self.stage_blocks:
            block.build((None, None, self.hidden_dim))

    def call(self, codes: Tensor, labels: Tensor, training: bool | None = None) -> Tensor:
        # `[batch, L]` -> `[batch, positions, stages]` -> `[batch, positions, stages, H]`
        codes = ops.reshape(codes, (-1, self.num_positions, self.num_codebooks))
        sums = ops.cumsum(self.embed(codes, ops.arange(self.num_codebooks)), axis=2)
        before = ops.concatenate([ops.expand_dims(self.start(codes[:, 0, 0]), 1), sums[:, :-1, -1]], axis=1)
        x = self.dropout(self.locate(before, ops.arange(self.num_positions), labels), training=training)
        for block in self.blocks:
            x = block(x, causal=True, training=training)
        x = ops.concatenate([ops.expand_dims(x, 2), sums[:, :, :-1]], axis=2)
        # `[batch, positions, stages, H]` -> `[batch * positions, stages, H]`
        x = ops.reshape(x, (-1, self.num_codebooks, self.hidden_dim)) + self.stages
        for block in self.stage_blocks:
            x = block(x, causal=True, training=training)
        return self.logits(x)

    def start(self, like: Tensor) -> Tensor:
        """The input at the first position, `[batch, H]`. `like` is any integer tensor `[batch]`."""
        return self.embed(ops.full_like(like, self.num_embeddings), 0)

    def start_caches(self, batch_size: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Empty caches for `step_position` and for `step_stage`, one for each block."""

        def caches(blocks: list[TransformerBlock], length: int) -> list[Tensor]:
            shape = (2, batch_size, length, self.num_heads, self.hidden_dim // self.num_heads)
            return [ops.zeros(shape, self.compute_dtype) for _ in blocks]

        return caches(self.blocks, self.num_positions), caches(self.stage_blocks, self.num_codebooks)

    def step_position(
        self, before: Tensor, labels: Tensor, caches: list[Tensor], position: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the output at a position, `[batch, H]`, and new caches.

        `before` is the sum of the embeddings of the previous position's codes, `[batch, H]`.
        """
        x = self.locate(ops.expand_dims(before, 1), ops.reshape(position, (1,)), labels)
        return step(self.blocks, x, caches, position)

    def step_stage(self, x: Tensor, caches: list[Tensor], stage: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits of a stage's code, `[batch, K]`, and new caches.

        `x` is the output of `step_position` for the first stage, and the sum of the embeddings of the position's codes
        so far for the others.
        """
        stages, head, bias = (
            ops.take(ops.convert_to_tensor(weight), stage, axis=0) for weight in (self.stages, self.head, self.bias)
        )
        x, caches = step(self.stage_blocks, ops.expand_dims(x + stages, 1), caches, stage)
        # Keras 3.16 normalizes only inputs of the rank for which the layer was built.
        x = self.norm(ops.expand_dims(x, 1))[:, 0]
        outside = self.outside
        outside = None if outside is None else ops.take(ops.convert_to_tensor(outside), stage, axis=0)
        return self.within_codebooks(ops.matmul(x, head) + bias, outside), caches


def step(
    blocks: list[TransformerBlock], x: Tensor, caches: list[Tensor], position: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Applies blocks to `[batch, 1, H]` at a position. Returns `[batch, H]` and the blocks' new caches."""
    new = []
    for block, cache in zip(blocks, caches, strict=True):
        x, cache = block.step(x, cache, position)
        new.append(cache)
    return x[:, 0], new
