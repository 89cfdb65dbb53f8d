"""Pure functions of vectors and a codebook: creation, lookup and counts.

Shapes in comments: `N` vectors, `K` codes, `D` dimensions.
"""

from collections.abc import Iterable

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.ops import estimators
from keras_vqvae.ops.search import nearest_code
from keras_vqvae.types import Tensor


def init_codebook(num_embeddings: int, embedding_dim: int, seed: int = 42) -> Tensor:
    """Draws a codebook from the standard normal distribution.

    Args:
        num_embeddings: Number of codes, `K`.
        embedding_dim: Size of a code, `D`.
        seed: Integer seed. On one backend, equal seeds give equal codebooks. Defaults to `42`.

    Returns:
        A float32 tensor `[K, D]`.

    Example:

    >>> init_codebook(num_embeddings=512, embedding_dim=64).shape == (512, 64)
    True
    """
    shape = (
        validation.positive_int("num_embeddings", num_embeddings),
        validation.positive_int("embedding_dim", embedding_dim),
    )
    return keras.random.normal(shape, dtype="float32", seed=validation.seed(seed))


def gather_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """Returns the rows of a codebook at `indices`, which are not checked. The gradient is dense."""
    return backend.gather_rows(ops.convert_to_tensor(codebook), indices)


def lookup(codebook: Tensor, indices: Tensor) -> Tensor:
    """Returns the codes of `indices`, differentiable with respect to the codebook.

    Args:
        codebook: `[K, D]`.
        indices: Integers `[...]` from 0 to `K - 1`.

    Returns:
        A tensor `[..., D]` of the codebook's dtype.

    Raises:
        ValueError: If an index is out of range. Compiled code cannot raise; there, indices are clipped to the valid
            range.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> bool(keras.ops.all(lookup(codebook, [3, 3, 7])[0] == codebook[3]))
    True
    """
    return gather_codes(codebook, validation.code_indices("indices", indices, codebook.shape[0]))


def quantize(z_e: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces each vector by its nearest code, with a straight-through gradient.

    The losses need the raw codes, `lookup(codebook, indices)`, in place of `z_q`: see `keras_vqvae.loss`.

    Args:
        z_e: Encoder outputs `[..., D]`, with any leading dimensions.
        codebook: `[K, D]`.

    Returns:
        `(z_q, indices)`: the codes `[..., D]`, whose gradient is copied to `z_e`, and int32 indices `[...]`.

    Raises:
        ValueError: If the last dimensions of `z_e` and `codebook` differ.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> z_q, indices = quantize(keras.ops.zeros((4, 7, 7, 2)), codebook)
    >>> z_q.shape == (4, 7, 7, 2), indices.shape == (4, 7, 7)
    (True, True)

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), equations 1 and 2
    """
    z_e = ops.convert_to_tensor(z_e)
    indices = nearest_code(z_e, codebook)
    codes = ops.cast(gather_codes(codebook, indices), z_e.dtype)
    return estimators.straight_through(z_e, codes), indices


def count_codes(indices: Tensor, valid: Tensor, num_embeddings: int) -> Tensor:
    """Counts how often each code occurs among the valid indices: `[N]`, booleans `[N]` -> int32 `[K]`."""
    return backend.segment_sum(ops.cast(valid, "int32"), indices, num_embeddings)


def count_columns(
    indices: Tensor, valid: Tensor, num_embeddings: int, codebooks: tuple[int, ...] | None = None
) -> Tensor:
    """Counts the codes of `C` codebooks at once: `[N, Q]`, booleans `[N, Q]` -> int32 `[C, K]`.

    Args:
        indices: Integers `[N, Q]`.
        valid: Booleans `[N, Q]`. An index is counted if its entry is true.
        num_embeddings: Number of codes of each codebook, `K`.
        codebooks: For each column, which codebook it belongs to, `Q` integers from 0 to `C - 1`. Defaults to `None`:
            each column has its own codebook.
    """
    columns = indices.shape[-1]
    number = columns if codebooks is None else max(codebooks) + 1
    indices = backend.at_least(indices, 0)
    if number > 1:
        owners = ops.arange(columns, dtype="int32") if codebooks is None else backend.constants(codebooks, indices)
        # Shifts the indices of each codebook to a separate range.
        indices = indices + num_embeddings * owners
    counts = count_codes(ops.reshape(indices, (-1,)), ops.reshape(valid, (-1,)), number * num_embeddings)
    return ops.reshape(counts, (number, num_embeddings))


def codebooks_in_turn(num_codebooks: int | Iterable[int]) -> tuple[int, ...]:
    """Returns, for each index of a sample, which codebook it belongs to, counted from 0.

    Args:
        num_codebooks: Number of codebooks, with one index each. Or a sequence with the number of indices of each
            codebook, for samples whose indices are ordered by codebook.
    """
    if hasattr(num_codebooks, "__iter__"):
        sizes = validation.positive_ints("num_codebooks", num_codebooks)
        if not sizes:
            raise ValueError(f"`num_codebooks` must have at least one entry. Received: num_codebooks={num_codebooks!r}")
        return tuple(codebook for codebook, size in enumerate(sizes) for _ in range(size))
    return tuple(range(validation.positive_int("num_codebooks", num_codebooks)))
