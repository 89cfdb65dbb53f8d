from keras_vqvae.models.conv import build_conv_decoder as build_conv_decoder
from keras_vqvae.models.conv import build_conv_encoder as build_conv_encoder
from keras_vqvae.models.mlp import build as build
from keras_vqvae.models.mlp import build_decoder as build_decoder
from keras_vqvae.models.mlp import build_encoder as build_encoder
from keras_vqvae.models.vqvae import VQVAE as VQVAE
