"""`bench`: time a student's decode beside its teacher's on every runtime there is.

bench.py        the verb: one process per target
child.py        what such a process does, and how it is started
target.py       the types of a target
targets/        one file per runtime, and their table
results.py      rows, their JSON, comparison with an earlier run, thresholds
published.py    what others measured
ios_project.py  a Swift package that measures on a phone; ios/ has its sources
"""
