"""What pre-trained networks and exit heads learnt, which units to train on, and what the bundled model is made of."""
