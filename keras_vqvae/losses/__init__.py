from keras_vqvae.losses.loss_sum import LossSum as LossSum
from keras_vqvae.losses.perceptual import PerceptualLoss as PerceptualLoss
from keras_vqvae.losses.spectral import SpectralLoss as SpectralLoss
