"""The surrogate of a cluster: designed logs, the nodes' network behind a router, the backend, and how true it is."""
