"""How files are read and written, whatever is in them.

whole.py       write files and folders whole or not at all
places.py      whether an output can be written at a path
sealed.py      JSON documents and manifests that detect any change
locks.py       lock files
documents.py   text and JSON from any source, read within bounds
changes.py     what differs between two documents of settings
remote.py      folders at fsspec URLs, and local copies of them
system.py      features that Windows lacks
tensors.py     weight files, checked before a network takes them
"""
