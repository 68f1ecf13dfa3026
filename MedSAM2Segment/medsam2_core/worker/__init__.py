"""The worker: heavy computation in a separate process, reached through its standard input and output.

Both sides share `protocol` (frames and errors), `messages` and `job_messages` (their contents). The client
needs only numpy and runs in 3D Slicer: `client`, `session_client`, `connection`, `requests`, `uploads`,
`transports`. The server computes: `server`, `jobs`, `session_requests`, `incoming`, `model_requests`,
`subprocesses`, `system`.
"""
