"""What every job stands on: the session, the command line, the run and its record, reading and writing tables."""
