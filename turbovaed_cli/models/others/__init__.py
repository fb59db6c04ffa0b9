"""Decoders of other projects, each a `Decoder` as models/decoder.py defines it; models/decoders.py chooses among them.

family.py          the base of their modules, a stream for those that keep a few frames, and strict loading
spaces.py          the latent space of a teacher, without loading the teacher
diffusers_vae.py   a diffusers VAE's own decoder
"""
