"""`reconstruct`: video in, video out, in bounded memory.

reconstruct.py  the verb, for one video or one file of latents
folder.py       the same for every input of a folder
encoding.py     the teacher's latents, as frames come
memory.py       how much memory decoding and encoding will take
windows.py      windows that overlap, and a fade where they meet
"""
