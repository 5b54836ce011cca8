"""Beyond one process, on Ray (the extra ``ray``)."""
