"""`eval`: how close a student comes to its source, beside its teacher.

evaluate.py    the verb
measurable.py  which metrics this machine can compute, and why not the others
scores.py      scores per clip, means, ratios, thresholds
intervals.py   confidence intervals
published.py   published figures, beside ours
paper.py       the published script's way to measure
"""
