"""How long tests wait for other processes."""

HANG_S = 1200.0  # seconds after which a test gives up waiting: a hang, as nothing takes this long on however busy a machine
