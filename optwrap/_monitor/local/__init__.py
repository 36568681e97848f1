"""What a Monitor does for its own program, beside its reports: records for trackers, a local exporter, a table.

Modules, lowest first: record callback serve table child.
"""
