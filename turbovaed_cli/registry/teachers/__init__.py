"""One file per teacher family: its registry row, with the special rules of its class."""
