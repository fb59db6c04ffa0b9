"""`eval`: measure how close a student is to its source videos, next to its teacher.

evaluate.py    the command
decoding.py    the decodes of a clip that are measured
from_latents.py  the same on latents, against the teacher's decode
costs.py       the memory of a decode, for a comparison
measurable.py  which metrics this machine can compute, and why not the rest
scores.py      scores per clip, means, ratios, thresholds
intervals.py   confidence intervals
published.py   published figures, for comparison
paper.py       the protocol of the published script
"""
