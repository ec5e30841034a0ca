"""The terms of the loss that training minimises."""
