"""Trains in several processes with PyTorch's `DistributedDataParallel`.

    KERAS_BACKEND=torch torchrun --nproc-per-node 2 examples/distributed_torch.py

For several machines, run it on each with its own `--node-rank` and the address of the first one:

    KERAS_BACKEND=torch torchrun --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --master-port 1234 \\
        --nproc-per-node 8 examples/distributed_torch.py

`DistributedDataParallel` averages gradients, and the quantizer sums the statistics of its codebook. Both wait for all
processes, so all processes must take the same number of steps.
"""

import argparse
import os
import pathlib

import images
import keras
import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import keras_vqvae

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--batch-size", type=int, default=100, help="samples per step, over all processes")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--dead-code-threshold", type=float, default=0.1, help="0: dead codes are not replaced")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("distributed"))
arguments = parser.parse_args()

# Use Keras's device, which is not always the first one of the machine.
cuda = torch.cuda.is_available() and os.environ.get("KERAS_TORCH_DEVICE", "cuda").startswith("cuda")
if cuda:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
distributed.init_process_group("nccl" if cuda else "gloo")
rank, processes = distributed.get_rank(), distributed.get_world_size()

# Equal seeds: each process makes the same weights.
keras.utils.set_random_seed(0)
inputs = keras.Input((64,))
encoder, decoder = keras_vqvae.build(input_size=64, embedding_dim=16)
quantizer = keras_vqvae.VectorQuantizer(128, ema_decay=0.99, dead_code_threshold=arguments.dead_code_threshold, seed=0)
model = keras.Model(inputs, decoder(quantizer(encoder(inputs))))
together = DistributedDataParallel(model)
optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 1e-3)

# Each process has its part of every batch. The last, incomplete batch is dropped, so that all take the same steps.
x = torch.as_tensor(images.load("digits")[0].reshape(-1, 64))
x = x[: len(x) // arguments.batch_size * arguments.batch_size]
x = x.reshape(-1, processes, arguments.batch_size // processes, 64)[:, rank]
x = x.cuda() if cuda else x
for epoch in range(arguments.epochs):
    for batch in x:
        output = together(batch, training=True)
        loss = (output - batch).square().mean() + sum(model.losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        used = int((keras.ops.convert_to_numpy(quantizer.code_counts) > 0).sum())
        print(f"epoch {epoch + 1}: loss {float(loss.detach()):.6f}, {used} codes used by {processes} processes")

arguments.output.mkdir(parents=True, exist_ok=True)
np.savez(arguments.output / f"weights-{rank}.npz", *map(keras.ops.convert_to_numpy, model.variables))
distributed.destroy_process_group()
