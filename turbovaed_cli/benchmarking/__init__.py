"""`bench`: time a student's decode next to its teacher's on every available runtime.

bench.py        the command: one process per target
child.py        the work of such a process, and how it is started; __main__.py is what is started
target.py       the types of a target
targets/        one file per runtime, and their table
results.py      rows, their JSON, comparison with an earlier run, thresholds
timed_design.py a student for a number of milliseconds
published.py    published figures, and the estimate that follows from them
ios_project.py  a Swift package that measures on a phone; ios/ has its sources
"""
