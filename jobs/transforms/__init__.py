"""Pure DataFrame -> DataFrame functions: no session, no path, no torch."""
