"""One file per teacher family: its class with its special rules, its rows, and the classes that are refused."""
