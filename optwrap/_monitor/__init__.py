"""The host's part: `Monitor`, its reporting thread, and the path of a reading to the exporter.

observe -> queue (Inbox) -> intake -> account (totals by incarnation, records in the backlog) -> outbox (reports, by
encode) -> transport -> exporter. The reporter drives all of it; the thread starts and ends the reporter.

What a Monitor does for its own program is in `local`.

Modules, lowest first: log settings source transport worst queue backlog account encode intake outbox
reporter thread monitor.
"""
