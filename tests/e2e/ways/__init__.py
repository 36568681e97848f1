"""Every way to run a step, on one device, on eight and in several processes, against the same truth."""
