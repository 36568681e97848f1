"""A rehearsal: hosts, trainers and the whole monitoring are real, they fail, and everybody has to say what happened.

Everything runs in namespaces of its own, which end with the program. Hosts are network namespaces on a bridge, each
with an address and a name. The trainers of a `jax.distributed` job run on them, one on each.

    trainer -> sidecar of its host, over a Unix socket  -.
    trainer -> exporter of the job, over TCP with a token +-> Prometheus in agent mode, which finds them by their files
      -> remote_write -> the central Prometheus, with the shipped rules -> Alertmanager -> a webhook

A Monitor reports to one endpoint. So each trainer has two Monitors, which observe the same readings under two names:
the run `<fault>.sidecars` and the run `<fault>.shared`.

Each trainer writes what it did, step by step, from its own readings: the truth. What the central Prometheus, the shared
exporter's JSON and the alerts say must equal it.

Modules, lowest first: hosts trainer truth programs job findings scene faults table.
"""
