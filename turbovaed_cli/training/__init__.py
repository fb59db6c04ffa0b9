"""`distill`: teach a small decoder to do what a frozen teacher's decoder does.

distill.py       the command
prepare.py       teacher, student, data and losses, checked before anything is written
loop.py          the steps: learn, record, save, stop when asked
resume.py        whether it is the same run, and the step it continues from
trainer.py       one optimizer step
batches.py       batches as functions of (seed, index), and copies to the device
recipes.py       presets, and schedules from TOML
schedule.py      the position of a step in a schedule
losses.py alignment.py discriminator.py muon.py   the parts of a step
validation.py    `--val`: measure the finished run
first_clips.py   the clips for a fitted start and for statistics of latents
fitted_start.py  initial weights by least squares
pruned_start.py  initial weights cut from the teacher's decoder
least_squares.py  one convolution fitted to what it should return
causal_start.py  those of a causal student from one that is not
state.py         everything that a resume needs
checks.py        settings and runs that are refused
estimate.py      time and memory in advance
length.py        `--hours`: steps of every stage from timed ones
trackers.py      `--log`: experiment trackers
outputs.py       samples, report.html and model/
"""
