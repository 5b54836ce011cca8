"""Work in more than one process, on Ray (the extra ``ray``)."""
