"""The worker: heavy work in a process of its own, which speaks over its standard input and output.

Both sides share `protocol` (frames and errors), `messages` and `job_messages` (what is in them). The client
side needs only numpy and runs in 3D Slicer: `client`, `session_client`, `connection`, `requests`, `uploads`,
`transports`. The other side computes: `server`, `jobs`, `session_requests`, `incoming`,
`model_requests`, `subprocesses`, `system`.
"""
