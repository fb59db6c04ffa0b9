"""`distill`: teach a small decoder to do what a frozen teacher's decoder does.

distill.py       the verb
prepare.py       teacher, student, data and losses, checked before anything is written
loop.py          the steps: learn, record, save, stop when asked
resume.py        whether it is the same run, and where it goes on
trainer.py       one optimizer step
batches.py       batches as functions of (seed, index), and copies to the device
recipes.py       presets, and schedules from TOML
schedule.py      where in a schedule a step is
losses.py alignment.py discriminator.py muon.py   what a step is made of
validation.py    `--val`: the finished run, measured
fitted_start.py  a start by least squares
state.py         all that a resume needs
checks.py estimate.py trackers.py outputs.py      refuse, foresee, log, show
"""
