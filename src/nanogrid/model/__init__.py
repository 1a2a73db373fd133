"""What NanoGrid talks about: functions, versions, aliases, invocations. No I/O lives here."""
