"""From records to augmented batches, in an order of their own."""
