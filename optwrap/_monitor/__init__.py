"""What runs on the host: the Monitor, its thread, its queue and its reports."""
