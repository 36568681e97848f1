"""The packed reading: the only thing that the device's half and the host's half share."""
