"""The host's part: `Monitor`, its reporting thread, and the path of a reading to the exporter.

observe -> queue (Inbox) -> intake -> account (totals by incarnation, records in the backlog) -> outbox (reports, by
encode) -> transport -> exporter. The reporter drives all of it; the thread starts and ends the reporter, and the
lifecycle the thread.

What a Monitor does for its own program is in `local`; what builds and sends reports is in `sending`.

Modules, lowest first: log one_optimizer settings source worst queue backlog account scalars intake reporter thread
lifecycle monitor.
"""
