"""Chaos: real training processes, a real exporter and a real Prometheus, and everything between them goes wrong.

What goes wrong, and when, is drawn from a seed; so is what happens in each step of the training, which makes the truth
a piece of numpy. At the end every number that anybody can read has to be that truth.

    schedule -> storm (jobs -> faulty network -> exporter -> Prometheus) -> findings, compared with the truth
"""
