"""The models of turbovaed, and the sources of their weights.

family.py        how a VAE class is recognised, built, encoded with, decoded with and tapped
image_vae.py     the common case of an image VAE
carry.py         the exact encode in pieces of LTX encoders
neighbourhood.py the attention of LTX-2.5, block by block
specs.py         the types of a row
blocks.py        the blocks of a student, from its config
cost.py          parameters and FLOPs of a student, from its config
members.py       the family of students of a teacher: full, lite, nano, causal
rows.py          MODELS: every row
teachers/        one file per teacher family
find.py          a row by its name, or for a local folder
weight_files.py  the weight files and the licence of a local teacher
download.py      weights from the package, the hub's cache, or a download that the user agreed to
hub.py           repositories on the hub by their id
pull.py          `models pull`
licences.py      licences as the hub's cards state them
backbones.py     the networks that LPIPS compares with
st_lpips.py      the package that has the networks of ST-LPIPS
"""
