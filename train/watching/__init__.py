"""What people see of a run: console, TensorBoard, pictures of the positions."""
