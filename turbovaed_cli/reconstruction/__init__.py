"""`reconstruct`: video in, video out, in bounded memory.

reconstruct.py  the command, for one video or one file of latents
folder.py       the command for every input of a folder
encoding.py     encoding to the teacher's latents, piece by piece
memory.py       predicted memory of encoding and decoding, and pieces that fit
windows.py      overlapping windows and the cross-fade between them
"""
