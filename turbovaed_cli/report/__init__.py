"""report.html: the results of a run, an evaluation or a benchmark, as one file that opens anywhere.

run_page.py    the page of a run or an evaluation
bench_page.py  the page of `bench --report`
compare_page.py  the page of `eval --compare --report`
side_by_side.py  clips by several decoders, for that page
testcard.py    the test card of `eval --testcard`, on both pages
tables.py      figures and tables
curves.py      curves of a run
card.py        the model card of a student
clips.py       clips in the form that a page can show
grids.py       drawings of the error that repeats at the lattice of upsampling
assets.py      the files that pages are made of: page.html page.css page.js bench.html bench.css plot.html clip.html compare.html compare.css testcard.html testcard.css
"""
