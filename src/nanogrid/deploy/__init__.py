"""From an uploaded archive to a published version: unpack, build, probe, publish."""
