"""Vector quantization for Keras 3, on TensorFlow, JAX and PyTorch."""

from keras_vqvae.callbacks import CodebookMonitor as CodebookMonitor
from keras_vqvae.callbacks import TemperatureScheduler as TemperatureScheduler
from keras_vqvae.constraints import SpectralNorm as SpectralNorm
from keras_vqvae.figure_writer import FigureWriter as FigureWriter
from keras_vqvae.layers import BinarySphericalQuantizer as BinarySphericalQuantizer
from keras_vqvae.layers import CodebookQuantizer as CodebookQuantizer
from keras_vqvae.layers import FiniteScalarQuantizer as FiniteScalarQuantizer
from keras_vqvae.layers import GroupedQuantizer as GroupedQuantizer
from keras_vqvae.layers import GumbelQuantizer as GumbelQuantizer
from keras_vqvae.layers import IndexBackpropagationQuantizer as IndexBackpropagationQuantizer
from keras_vqvae.layers import LookupFreeQuantizer as LookupFreeQuantizer
from keras_vqvae.layers import MultiScaleQuantizer as MultiScaleQuantizer
from keras_vqvae.layers import ProjectedQuantizer as ProjectedQuantizer
from keras_vqvae.layers import Quantizer as Quantizer
from keras_vqvae.layers import ResidualQuantizer as ResidualQuantizer
from keras_vqvae.layers import SimVectorQuantizer as SimVectorQuantizer
from keras_vqvae.layers import VectorQuantizer as VectorQuantizer
from keras_vqvae.losses import LossSum as LossSum
from keras_vqvae.losses import PerceptualLoss as PerceptualLoss
from keras_vqvae.losses import SpectralLoss as SpectralLoss
from keras_vqvae.metrics import CodebookPerplexity as CodebookPerplexity
from keras_vqvae.metrics import CodebookUsage as CodebookUsage
from keras_vqvae.models import VQGAN as VQGAN
from keras_vqvae.models import VQVAE as VQVAE
from keras_vqvae.models import AutoregressivePrior as AutoregressivePrior
from keras_vqvae.models import MaskedPrior as MaskedPrior
from keras_vqvae.models import Prior as Prior
from keras_vqvae.models import build as build
from keras_vqvae.models import build_conv_decoder as build_conv_decoder
from keras_vqvae.models import build_conv_discriminator as build_conv_discriminator
from keras_vqvae.models import build_conv_encoder as build_conv_encoder
from keras_vqvae.models import build_decoder as build_decoder
from keras_vqvae.models import build_encoder as build_encoder
from keras_vqvae.models import build_spectrogram_discriminator as build_spectrogram_discriminator
from keras_vqvae.ops.clustering import kmeans as kmeans
from keras_vqvae.ops.codebook import init_codebook as init_codebook
from keras_vqvae.ops.codebook import lookup as lookup
from keras_vqvae.ops.codebook import quantize as quantize
from keras_vqvae.ops.entropy import AssignmentEntropy as AssignmentEntropy
from keras_vqvae.ops.estimators import diveq as diveq
from keras_vqvae.ops.estimators import nsvq as nsvq
from keras_vqvae.ops.estimators import rotation as rotation
from keras_vqvae.ops.estimators import straight_through as straight_through
from keras_vqvae.ops.losses import codebook_loss as codebook_loss
from keras_vqvae.ops.losses import commitment_loss as commitment_loss
from keras_vqvae.ops.losses import loss as loss
from keras_vqvae.ops.search import nearest_code as nearest_code
from keras_vqvae.semantic_ids import append_collision_index as append_collision_index
from keras_vqvae.semantic_ids import unique_fraction as unique_fraction

__version__ = "0.3.0"


def __getattr__(name: str) -> object:
    # `keras_vqvae.plotting` is imported at its first use, because it needs matplotlib, which is optional.
    if name == "plotting":
        import importlib

        return importlib.import_module("keras_vqvae.plotting")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
