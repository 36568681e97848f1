"""The exporter over a long time: a simulated day of a job, and real Monitors while the exporter is killed."""
