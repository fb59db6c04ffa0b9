"""Decoders of other projects, each a `Decoder` as models/decoder.py defines it; models/decoders.py chooses among them.

family.py          the base of their modules, a stream for those that keep a few frames, and strict loading
spaces.py          the latent space of a teacher, without loading the teacher
diffusers_vae.py   a diffusers VAE's own decoder
weights.py         the tensors of any weight file, or of a training checkpoint
turbo_vaed.py      the authors' training checkpoints, and Hummingbird-XT: students by their architecture
taehv.py           TAEHV in all widths, and LightTAE
taehv_student.py   a decoder of that architecture that `distill` trains
flash_wan.py flash_ltx.py   Flash-VAED's students of Wan 2.1 and of LTX-Video
magihuman.py       TurboV3 of MagiHuman, in windows
"""
