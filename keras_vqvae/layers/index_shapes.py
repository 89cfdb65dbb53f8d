"""The shape of indices that a quantizer decodes."""

from keras import ops

from keras_vqvae.types import Tensor

Shape = tuple[int | None, ...]


def leading_axes(name: str, shape: Shape, index_shape: tuple[int, ...]) -> Shape:
    """Returns the axes before those of `index_shape`, which may be shorter: the first stages or groups.

    Raises:
        ValueError: If `shape` has too few axes, or its last ones are longer than `index_shape`.
    """
    leading = len(shape) - len(index_shape)
    sizes = zip(shape[max(leading, 0) :], index_shape, strict=False)
    if leading < 0 or any(size is not None and size > own for size, own in sizes):
        fewer = ", or in fewer of its stages or groups: the first ones" if index_shape else ""
        raise ValueError(
            f"`{name}` must have a shape that ends in {index_shape}{fewer}. Received: {name} of shape {tuple(shape)}"
        )
    return tuple(shape[:leading])


def completed(indices: Tensor, index_shape: tuple[int, ...]) -> Tensor:
    """Fills up indices of the first stages or groups with -1, for no code: `[..., *index_shape]`."""
    leading = len(indices.shape) - len(index_shape)
    missing = [
        own - (own if size is None else size) for size, own in zip(indices.shape[leading:], index_shape, strict=True)
    ]
    if not any(missing):
        return indices
    return ops.pad(indices, [(0, 0)] * leading + [(0, size) for size in missing], constant_values=-1)
