"""One file per teacher family: its row, and what is special about its class."""
