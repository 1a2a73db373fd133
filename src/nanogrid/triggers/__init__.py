"""What invokes functions besides callers: the clock; and the reaper, which invokes again what was left behind."""
