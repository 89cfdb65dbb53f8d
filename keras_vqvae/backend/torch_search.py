"""The search on PyTorch: the scores of a block of codes, and the index of their maximum."""

from collections.abc import Sequence

import torch

from keras_vqvae.types import Tensor


def best_code(vectors: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of the scores `vectors codes^T + bias`, and its first index: `[n, D]`, `[k, D]`, `[k]` -> `[n]` each."""
    # Not for exported programs: they run elsewhere, and litert-torch does not convert the operations below.
    if vectors.device.type != "cpu" or torch.compiler.is_exporting():
        return torch.addmm(bias, vectors, codes.T).max(-1)
    # The product is computed as a convolution of `n x 1` pixels, which runs in oneDNN. A matrix product would run in
    # MKL, which takes twice as long on processors that Intel did not make.
    # `[n, D]` -> `[1, n, 1, D]` -> `[1, D, n, 1]` -> `[1, k, n, 1]` -> `[n, k]`, channels last and never copied
    pixels = vectors.reshape(1, -1, 1, vectors.shape[1]).permute(0, 3, 1, 2)
    scores = torch.nn.functional.conv2d(pixels, codes[:, :, None, None], bias)
    return best_of(scores.permute(0, 2, 3, 1).reshape(-1, len(codes)))


def best_of_groups(groups: Sequence[Tensor], codebooks: Sequence[Tensor]) -> Sequence[Tensor]:
    """Nearest code in each group: `[N, d]` each, `[K, d]` each -> `[N]` each."""
    # `[G, K, d]` and `[G, N, d]`, shifted so that the mean of each group's codes is 0.
    codes, vectors = torch.stack(list(codebooks)), torch.stack(list(groups))
    centre = codes.mean(1, keepdim=True)
    codes, vectors = codes - centre, vectors - centre
    bias = search_bias(codes.flatten(0, 1)).view(len(codes), 1, -1)
    return best_of(torch.baddbmm(bias, vectors, codes.mT))[1].unbind()


def best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last axis, and its first index: `[..., K]` -> `[...]` each."""
    if scores.shape[-1] % 64 or scores.device.type != "cpu":
        return scores.max(-1)
    # A maximum with its index takes 10 times as long as a maximum. So this first finds the group of 64 scores that has
    # the maximum, and then the index in the group.
    parts = scores.unflatten(-1, (-1, 64))
    best, part = parts.amax(-1).max(-1)
    index = part[..., None, None].expand(*[-1] * part.ndim, 1, 64)
    return best, torch.add(parts.gather(-2, index).squeeze(-2).argmax(-1), part, alpha=64)


def search_bias(codes: Tensor) -> Tensor:
    """`-|e|^2 / 2` for each code, in one operation: `[K, D]` -> `[K]`."""
    # With `beta=0` only the shape of the first argument matters.
    return torch.baddbmm(codes[:, :1, None], codes[:, None], codes[:, :, None], beta=0, alpha=-0.5).flatten()
