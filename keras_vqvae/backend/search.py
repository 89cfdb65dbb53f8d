"""The search in a block of codes, in the general form that `keras.ops` allows."""

from collections.abc import Sequence

from keras import ops

from keras_vqvae.backend.rows import Rows
from keras_vqvae.types import Tensor


class Search(Rows):
    """The best of many codes for each vector."""

    BLOCK_SCORES = 1 << 20
    """Scores per search block on a processor. On two cores this was the fastest of 2^18 to 2^21."""
    ACCELERATOR_SCORES = 1 << 26
    """Scores per search block on an accelerator."""
    BLOCK_CODES = 4096
    """Minimum block size in codes. With XLA it was the fastest of 1024 to 8192. PyTorch has smaller blocks."""
    GROUP_CODES = 64
    """Codes per group of a search block. It was the fastest of 32, 64 and 128."""
    MAX_BLOCKS = 64
    """Maximum number of blocks. A program contains each block, and XLA takes 10 times as long to compile 256."""

    def block_scores(self, like: Tensor) -> int:
        """Scores per search block on the device of `like`."""
        return self.ACCELERATOR_SCORES if self.on_accelerator(like) else self.BLOCK_SCORES

    def block_codes(self, num_embeddings: int) -> int:
        """Codes per search block."""
        # Large codebooks need larger blocks, so that there are at most `MAX_BLOCKS`. Rounded up to whole groups.
        groups = -(-num_embeddings // (self.MAX_BLOCKS * self.GROUP_CODES))
        return max(self.BLOCK_CODES, self.GROUP_CODES * groups)

    def search_bias(self, codes: Tensor) -> Tensor:
        """`-|e|^2 / 2` for each code: `[K, D]` -> `[K]`."""
        return -0.5 * ops.sum(ops.square(codes), axis=-1)

    def best_code(self, vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum of each row of `vectors codes^T + bias`, and its first index.

        `[n, D]`, `[k, D]`, `[k]` -> `[n]`, integers `[n]`.
        """
        # The bias is one more dimension of the product, so that no other pass over the scores has to add it. It also
        # keeps XLA from fusing a product over a single dimension with several operations, and rounding it differently.
        vectors = ops.concatenate([vectors, ops.ones_like(vectors[:, :1])], axis=1)
        size, codes = codes.shape[0], ops.concatenate([codes, bias[:, None]], axis=1)
        if not self.in_groups(size):
            return _first_maximum(self.matmul(vectors, ops.transpose(codes)))
        # The last group is padded with copies of the last code. A copy may win, because of rounding, and its index is
        # then corrected below.
        if missing := -size % self.GROUP_CODES:
            codes = ops.concatenate([codes, ops.repeat(codes[-1:], missing, axis=0)])
        # The scores are read once, for the maxima of groups. Then only the maxima and the best group are compared.
        groups = (-1, codes.shape[0] // self.GROUP_CODES, self.GROUP_CODES)
        scores = ops.reshape(self.matmul(vectors, ops.transpose(codes)), groups)
        group = self.argmax(ops.max(scores, axis=-1))
        best, index = _first_maximum(self.pick_rows(scores, group))
        index = self.GROUP_CODES * group + index
        return best, ops.minimum(index, size - 1) if missing else index

    def in_groups(self, num_embeddings: int) -> bool:
        """Whether the search first finds the group of `GROUP_CODES` codes that has the maximum."""
        # With few groups, padding the last one takes more time than groups save.
        return num_embeddings % self.GROUP_CODES == 0 or num_embeddings > 4 * self.GROUP_CODES

    def argmax(self, x: Tensor) -> Tensor:
        """First index of the maximum of each row: `[n, k]` -> integers `[n]`."""
        # `ops.argmax` of Keras 3.15 considers -0.0 less than 0.0, in a way that exporters do not convert
        # (keras-team/keras#20350).
        return _first_maximum(x)[1]

    def pick_rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Row `indices[i]` of each matrix `x[i]`: `[n, k, D]`, `[n]` -> `[n, D]`."""
        return ops.squeeze(ops.take_along_axis(x, indices[:, None, None], axis=1), 1)

    def search_groups(self, groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Nearest code in each group of dimensions, or `None` if separate searches are as fast.

        `[N, d]` each, `[K, d]` each -> `[N]` each.
        """
        return None

    def best_indices(self, scores: Tensor, count: int) -> Tensor:
        """Indices of the `count` highest scores in descending order: `[n, k]` -> int32 `[n, count]`."""
        return ops.cast(ops.top_k(scores, count)[1], "int32")


def _first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each row, and its first index: `[n, k]` -> `[n]`, int32 `[n]`."""
    best = ops.max(scores, axis=-1, keepdims=True)
    indices = ops.arange(scores.shape[-1], dtype="int32")
    # `scores < best` is false for a NaN, which therefore finds index 0. With `scores == best` it would find none.
    indices = ops.min(ops.where(scores < best, scores.shape[-1], indices), axis=-1)
    return ops.squeeze(best, -1), indices
