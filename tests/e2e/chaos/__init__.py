"""Chaos: real training processes, a real exporter and a real Prometheus, and everything between them goes wrong.

A seed decides what goes wrong and when, and what the gradients of every step are, so that the truth can be simulated in
numpy. At the end every number that the exporter and Prometheus show has to be that truth.

    schedule -> storm (jobs -> faulty network -> exporter -> Prometheus) -> findings, compared with the truth
"""
