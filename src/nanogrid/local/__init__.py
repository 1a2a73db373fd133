"""What the embedded adapters share: one SQLite file, and wake-ups between the processes of one machine."""
