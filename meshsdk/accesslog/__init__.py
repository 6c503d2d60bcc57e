"""Access logs of calls: a line per finished call, as a sidecar writes it for outbound requests.

    record = Record(view, request, began, random)   # where `view.access_logs` says so, else nothing
    record.decided(decision)
    record.tried(endpoint, now)                     # per attempt
    record.answered(now, status, headers)
    finish(record, now)                             # once; what comes later is not looked at

`Record` decides purely what stands in the lines; `finish` hands them to a thread that writes them.
"""

from meshsdk.accesslog.record import Outcome, Record
from meshsdk.accesslog.sink import finish

__all__ = ["Outcome", "Record", "finish"]
