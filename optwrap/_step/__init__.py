"""What runs inside the jitted step: the instrumentation."""
