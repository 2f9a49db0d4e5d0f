"""Web frameworks, job queues, logging and caches. Each module needs the extra of its name."""
