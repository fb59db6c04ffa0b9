"""`reconstruct`: video in, video out, in bounded memory.

reconstruct.py  the command, for one video or one file of latents
folder.py       the command for every input of a folder
columns.py      several decoders side by side, and a decoder that only takes whole clips
windows.py      overlapping windows and the cross-fade between them
"""
