from keras_vqvae.layers.codebook_quantizer import CodebookQuantizer as CodebookQuantizer
from keras_vqvae.layers.quantizer import Quantizer as Quantizer
from keras_vqvae.layers.vector_quantizer import VectorQuantizer as VectorQuantizer
