"""Students in diffusers pipelines.

attach.py   a student decodes in place of the pipeline's own decoder, until it is taken out again
space.py    the latents of a pipeline's VAE, and whether a decoder takes them
within.py   one decode within a limit of memory, on the device of the latents
save.py     a pipeline's folder that loads without turbovaed
"""
