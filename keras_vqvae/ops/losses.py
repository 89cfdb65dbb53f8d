"""Losses of a VQ-VAE. All are float32 scalars: means over all elements, or over the unmasked positions."""

from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


def mean_squared_difference(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean of `(a - b) ** 2`, over all elements or over the unmasked positions of a mask `[...]`."""
    # Squares of float16 overflow from 256 on.
    a, b = ops.cast(a, "float32"), ops.cast(b, "float32")
    if mask is None:
        # The mean of an empty batch must be 0, and `ops.mean` returns NaN.
        return ops.sum(ops.square(a - b)) / ops.maximum(ops.cast(ops.size(a), "float32"), 1.0)
    # Masked before they are squared: the gradient of a masked square of NaN is `0 * NaN`, a NaN.
    mask = ops.cast(mask, "bool")
    differences = backend.masked(a - b, mask)
    count = backend.at_least(backend.count_true(mask), 1.0)
    return ops.sum(ops.square(differences)) / (count * a.shape[-1])


def codebook_loss(z_e: Tensor, z_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pulls the codes towards the encoder's outputs: `mean((stop_gradient(z_e) - z_q) ** 2)`.

    Only `z_q` gets a gradient, so `z_q` must be the raw codes, `lookup(codebook, indices)`. With the straight-through
    output of `quantize`, the codebook gets no gradient, and the loss pushes the encoder *away* from its codes.

    Args:
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their codes, of the same shape.
        mask: Optional booleans `[...]`; positions that are `False` do not count.

    Returns:
        A float32 scalar.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> z_e = codebook[:3] + 0.5
    >>> round(float(codebook_loss(z_e, codebook[:3])), 4)
    0.25

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), equation 3, second term
    """
    return mean_squared_difference(ops.stop_gradient(ops.convert_to_tensor(z_e)), z_q, mask)


def commitment_loss(z_e: Tensor, z_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pulls the encoder's outputs towards their codes: `mean((z_e - stop_gradient(z_q)) ** 2)`.

    Only `z_e` gets a gradient.

    Args:
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their codes, of the same shape, or the straight-through output of `quantize`.
        mask: Optional booleans `[...]`; positions that are `False` do not count.

    Returns:
        A float32 scalar.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> round(float(commitment_loss(codebook[:3] + 0.5, codebook[:3])), 4)
    0.25

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), equation 3, third term
    """
    return mean_squared_difference(z_e, ops.stop_gradient(ops.convert_to_tensor(z_q)), mask)


def loss(reconstruction: Tensor, target: Tensor, z_e: Tensor, z_q: Tensor, commitment_weight: float = 0.25) -> Tensor:
    """The loss of a VQ-VAE: reconstruction error, codebook loss and weighted commitment loss.

    `mean((reconstruction - target) ** 2) + codebook_loss(z_e, z_q) + commitment_weight * commitment_loss(z_e, z_q)`

    Pass the raw codes as `z_q`, and the straight-through codes to the decoder:

    ```python
    z_e = encoder(x)
    z_q, indices = keras_vqvae.quantize(z_e, codebook)
    codes = keras_vqvae.lookup(codebook, indices)
    value = keras_vqvae.loss(decoder(z_q), x, z_e, codes)
    ```

    With `z_q` in place of `codes`, the value is the same, but the gradients are wrong. The codebook gets no gradient.
    The codebook loss reaches the encoder with the opposite sign, and outweighs the commitment loss: with the default
    weight, it pushes the encoder away from its codes.

    Args:
        reconstruction: The decoder's output.
        target: The target of the reconstruction, of the same shape.
        z_e: Encoder outputs, `[..., embedding_dim]`.
        z_q: Their raw codes, of the same shape.
        commitment_weight: Weight of the commitment loss, at least 0. Defaults to `0.25`.

    Returns:
        A float32 scalar.

    Example:

    >>> codebook = init_codebook(num_embeddings=8, embedding_dim=2)
    >>> round(float(loss(codebook[:3], codebook[:3], codebook[:3] + 0.5, codebook[:3])), 4)
    0.3125

    Reference:

    - [van den Oord et al., 2017](https://arxiv.org/abs/1711.00937), equation 3
    """
    commitment_weight = validation.non_negative("commitment_weight", commitment_weight)
    return (
        mean_squared_difference(reconstruction, target, mask=None)
        + codebook_loss(z_e, z_q)
        + commitment_weight * commitment_loss(z_e, z_q)
    )
