"""What pre-trained networks and exit heads learnt, which units to train on, and how the bundled model is made."""
