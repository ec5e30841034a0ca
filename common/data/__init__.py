"""Data formats that training and evaluation both read."""
