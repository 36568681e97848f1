"""What runs on the host: the Monitor, its thread, its queue and its reports.

Modules, lowest first: log settings source transport bases backlog account arrays queue intake outbox thread monitor.
"""
