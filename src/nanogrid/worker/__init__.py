"""A worker: takes calls from controllers and messages from the queue, and runs them in sandboxes."""
