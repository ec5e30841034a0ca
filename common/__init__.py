"""What training and evaluation share: the DCLS layer, model surgery, the zoo, data formats, the checkpoint format."""
