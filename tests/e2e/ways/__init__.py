"""Every way of running a step, reported either way, against the same truth: on one device, on eight, in processes."""
