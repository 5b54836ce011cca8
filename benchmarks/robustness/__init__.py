"""What damage does: files broken at random, of which none may end a command, crash a library or give wrong numbers."""
