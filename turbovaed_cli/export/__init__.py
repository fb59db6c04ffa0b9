"""`export`: write a student for other runtimes, and check what was written.

export.py       the verb
plan.py         which artefacts, under which names
checked_on.py   the latents they are checked on
compare.py      what was written, run beside the student
record.py       export.json
readme.py       the README and the page beside the artefacts
format.py       the types of a format
formats/        one file per format, and their table
export_form.py  the student with tensors of rank 4 and no 3-D convolutions
chunks.py       graphs of fixed size that decode any length
fp16_range.py   keep every value within fp16's range
cost.py         multiply-accumulates and memory of a graph
"""
