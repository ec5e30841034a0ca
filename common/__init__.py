"""What training and evaluation share: the DCLS layer, model surgery, the zoo, checkpoints, the scenes data set."""
