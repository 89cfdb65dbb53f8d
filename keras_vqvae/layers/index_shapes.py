"""The shape of indices that a quantizer decodes."""

from keras import ops

from keras_vqvae.types import Tensor

Shape = tuple[int | None, ...]


def leading_axes(name: str, shape: Shape, index_shape: tuple[int, ...]) -> Shape:
    """Returns the axes of `shape` before the axes of `index_shape`.

    The last axes may be shorter than `index_shape`, for indices of only the first stages or groups.

    Raises:
        ValueError: If `shape` has too few axes, or if a last axis is longer than in `index_shape`.
    """
    leading = len(shape) - len(index_shape)
    sizes = zip(shape[max(leading, 0) :], index_shape, strict=False)
    if leading < 0 or any(size is not None and size > own for size, own in sizes):
        fewer = ", or in smaller sizes for only the first stages or groups" if index_shape else ""
        raise ValueError(
            f"`{name}` must have a shape that ends in {index_shape}{fewer}. Received: {name} of shape {tuple(shape)}"
        )
    return tuple(shape[:leading])


def completed(indices: Tensor, index_shape: tuple[int, ...]) -> Tensor:
    """Pads indices of only the first stages or groups with -1, which means "no code": `[..., *index_shape]`."""
    leading = len(indices.shape) - len(index_shape)
    missing = [
        own - (own if size is None else size) for size, own in zip(indices.shape[leading:], index_shape, strict=True)
    ]
    if not any(missing):
        return indices
    return ops.pad(indices, [(0, 0)] * leading + [(0, size) for size in missing], constant_values=-1)
