"""What several processes and machines do together: the same results, at what cost, and through which failures."""
