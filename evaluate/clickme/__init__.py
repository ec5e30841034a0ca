"""`python -m evaluate.clickme`: download and convert ClickMe."""
