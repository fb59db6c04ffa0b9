"""turbovaed: distil the VAE decoders of video diffusion models into small ones that run anywhere."""

__version__ = "0.1.0"
